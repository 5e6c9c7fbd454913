package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// programs is the folder of the plugin and the daemon that the tests built.
var programs string

func TestMain(m *testing.M) {
	lab.RunIfChild()
	if unix.Geteuid() != 0 {
		fmt.Println("the tests of cmd/ripstop-cni make network namespaces: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "ripstop-cni-test-")
	if err == nil {
		programs = dir
		for _, name := range []string{"ripstop-cni", "ripstopd"} {
			if err == nil {
				err = build(name, filepath.Join(dir, name))
			}
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// build builds a command as it is shipped: static.
func build(name, path string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/ripstop-net/ripstop/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return nil
}
