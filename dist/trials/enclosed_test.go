//go:build runtime

package trials

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/lab"
)

// enclosed is a program, such as a container runtime, that works on a host of the
// lab with mounts and processes of its own: all that it starts ends with it, and
// nothing that it mounts is seen outside.
type enclosed struct {
	cmd *exec.Cmd
	out output
}

// output is what a program has said so far.
type output struct {
	mu   sync.Mutex
	text []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// startEnclosed starts a program that ends with the test. /run and /var/lib are empty
// and its own.
func startEnclosed(t *testing.T, h *lab.Host, program string, args ...string) *enclosed {
	t.Helper()
	e := &enclosed{}
	// Not "ip netns exec", which would mount a /sys without cgroups.
	const script = `mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && mkdir -p /run/netns /run/lock && exec "$@"`
	e.cmd = exec.Command("unshare", append([]string{
		"--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", program,
	}, args...)...)
	e.cmd.Stdout, e.cmd.Stderr = &e.out, &e.out
	if err := h.Namespace.Start(e.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.end(); err != nil {
			t.Errorf("%s: %v", program, err)
		}
		if t.Failed() {
			t.Logf("%s on %s:\n%s", program, h.Name, &e.out)
		}
	})
	return e
}

// end kills the first process of the enclosure. The kernel then kills all others, and
// only when they are gone does unshare learn of the end.
func (e *enclosed) end() error {
	if e.cmd.ProcessState != nil {
		return nil // It has ended before.
	}
	pid := e.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	first := strings.TrimSpace(string(children))
	if err == nil && first != "" {
		var child int
		if child, err = strconv.Atoi(first); err == nil {
			err = syscall.Kill(child, syscall.SIGKILL)
		}
	}
	ended := make(chan struct{})
	go func() { _ = e.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		_ = e.cmd.Process.Kill()
		<-ended
		err = errors.Join(err, errors.New("did not end"))
	}
	return err
}

// controlGroup names a control group for the containers of a test, which goes with it.
// None of a test before that was killed is left either.
func controlGroup(t *testing.T) string {
	t.Helper()
	const stem = "ripstop-trial-"
	sweep := func(all bool) {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + stem + "*")
		unified, _ := filepath.Glob("/sys/fs/cgroup/" + stem + "*")
		for _, group := range append(groups, unified...) {
			pid := strings.TrimPrefix(filepath.Base(group), stem)
			if _, err := os.Stat("/proc/" + pid); err == nil && !(all && pid == strconv.Itoa(os.Getpid())) {
				continue // Another's that runs.
			}
			var folders []string
			_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					folders = append(folders, path)
				}
				return nil
			})
			for _, folder := range slices.Backward(folders) { // Children first.
				if err := os.Remove(folder); err != nil && all {
					t.Errorf("left behind: %v", err)
				}
			}
		}
	}
	sweep(false)
	t.Cleanup(func() { sweep(true) })
	return "/" + stem + strconv.Itoa(os.Getpid())
}
