package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/ripstop-net/ripstop/cmd/internal/ripstopd"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
)

const unitDir = "../../dist/systemd"

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestUnitHasTheDaemonsFlags: what the unit, its settings file and the pages of the
// documentation say of flags and variables is so.
func TestUnitHasTheDaemonsFlags(t *testing.T) {
	flags, _ := ripstopd.Flags()
	variables := map[string]*pflag.Flag{}
	flags.VisitAll(func(f *pflag.Flag) { variables[settings.EnvironmentName(ripstopd.EnvPrefix, f.Name)] = f })

	env := readFile(t, filepath.Join(unitDir, "ripstopd.env"))
	lines := regexp.MustCompile(`(?m)^#?(RIPSTOPD_\w+)=(.*)$`).FindAllStringSubmatch(env, -1)
	if len(lines) < 10 {
		t.Errorf("the settings file shows %d variables", len(lines))
	}
	for _, m := range lines {
		f := variables[m[1]]
		if f == nil {
			t.Errorf("the settings file has %s, and ripstopd no such flag", m[1])
			continue
		}
		if value := strings.Trim(f.DefValue, "[]"); m[2] != value {
			t.Errorf("the settings file shows %s=%s, and the default is %q", m[1], m[2], value)
		}
	}

	unit := readFile(t, filepath.Join(unitDir, "ripstopd.service"))
	for _, m := range regexp.MustCompile(`--([a-z][a-z0-9-]+)`).FindAllStringSubmatch(unit, -1) {
		if flags.Lookup(m[1]) == nil {
			t.Errorf("the unit names --%s, which ripstopd has not", m[1])
		}
	}
	set := readFile(t, "../../dist/kubernetes/daemonset.yaml")
	args := regexp.MustCompile(`(?m)^ +- --([a-z0-9-]+)=(.*)$`).FindAllStringSubmatch(set, -1)
	if len(args) < 5 {
		t.Errorf("the DaemonSet has %d flags", len(args))
	}
	for _, m := range args {
		if flags.Lookup(m[1]) == nil {
			t.Errorf("the DaemonSet names --%s, which ripstopd has not", m[1])
		}
	}
	named := regexp.MustCompile(`RIPSTOPD_[A-Z0-9_]+`).FindAllString(set+readFile(t, "../../dist/kubernetes/settings.yaml"), -1)
	for _, name := range named {
		if variables[name] == nil {
			t.Errorf("the manifests have %s, and ripstopd no such flag", name)
		}
	}
	// What the daemon writes by default is in the folders that the unit leaves writable.
	for flag, folder := range map[string]string{"run-dir": "/run/ripstop", "state-dir": "/var/lib/ripstop", "subnet-file": "/run/flannel/subnet.env"} {
		if got := flags.Lookup(flag).DefValue; got != folder {
			t.Errorf("--%s is %s by default, the unit has it that it is %s", flag, got, folder)
		}
	}
	for _, line := range []string{"RuntimeDirectory=ripstop flannel", "RuntimeDirectoryPreserve=yes", "StateDirectory=ripstop", "ProtectSystem=strict", "EnvironmentFile=-/etc/ripstop/ripstopd.env", "Type=notify"} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit lacks %s", line)
		}
	}
}
