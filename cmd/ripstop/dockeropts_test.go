package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const bothFamilies = `FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.87.1/24
FLANNEL_IPV6_NETWORK=fd00:10:5::/48
FLANNEL_IPV6_SUBNET=fd00:10:5:1f::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=true
`

func writeTemp(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "subnet.env")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDockerOpts of subnet files, in each form.
func TestDockerOpts(t *testing.T) {
	const v4 = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.87.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	var all strings.Builder
	for _, tc := range []struct {
		subnets string
		args    []string
	}{{v4, nil}, {bothFamilies, nil}, {v4, []string{"-m", "-k", "OPTS"}}, {bothFamilies, []string{"-i"}}, {v4, []string{"-c"}}} {
		path := writeTemp(t, tc.subnets)
		out, err := ripstop(t, append([]string{"docker-opts", "-f", path}, tc.args...)...)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(strings.Join(append([]string{"#"}, tc.args...), " ") + "\n" + out)
		file := filepath.Join(t.TempDir(), "docker.env")
		if said, err := ripstop(t, append([]string{"docker-opts", "-f", path, "-d", file}, tc.args...)...); err != nil || said != "" {
			t.Errorf("%v: %s", err, said)
		}
		if text, err := os.ReadFile(file); err != nil || string(text) != out {
			t.Errorf("%v: the file has %s", err, text)
		}
	}
	golden(t, "docker-opts", all.String())
}

// TestDockerOptsRefuses what gives Docker no subnet, and says why.
func TestDockerOptsRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "docker.env")
	for want, args := range map[string][]string{
		"once it is ready":   {"-f", filepath.Join(t.TempDir(), "none")},
		"no IPv4 subnet":     {"-f", writeTemp(t, "FLANNEL_IPV6_SUBNET=fd00:10:5:1f::1/64\nFLANNEL_MTU=1430\n")},
		"no MTU":             {"-f", writeTemp(t, "FLANNEL_SUBNET=10.5.87.1/24\n")},
		"FLANNEL_SUBNET":     {"-f", writeTemp(t, "FLANNEL_SUBNET=$(reboot)\n")},
		"no variable's name": {"-f", writeTemp(t, bothFamilies), "-k", "A=1 B"},
		"none of the others": {"-f", writeTemp(t, bothFamilies), "-i", "-c"},
	} {
		if _, err := ripstop(t, append([]string{"docker-opts", "-d", file}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a refusal wrote a file")
	}
}

// TestDockerDropInIsTheTools: the unit's drop-in calls the tool as it is, and starts
// Docker by the variable that the tool writes.
func TestDockerDropInIsTheTools(t *testing.T) {
	text, err := os.ReadFile("../../dist/systemd/docker.service.d/ripstop.conf")
	if err != nil {
		t.Fatal(err)
	}
	command := ""
	for line := range strings.Lines(string(text)) {
		if c, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStartPre=/usr/bin/ripstop "); ok {
			command = c
		}
	}
	cmd, args, err := newRoot().Find(strings.Fields(command))
	if err != nil || cmd.Name() != "docker-opts" {
		t.Fatalf("%q is no command of the tool: %v", command, err)
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Error(err)
	}
	for _, line := range []string{"EnvironmentFile=-" + cmd.Flags().Lookup("file").Value.String(), "$" + cmd.Flags().Lookup("key").Value.String()} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("the drop-in lacks %s", line)
		}
	}
}
