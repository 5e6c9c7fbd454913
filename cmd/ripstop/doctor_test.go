package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/ripstop-net/ripstop/cmd/internal/ripstopd"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/network/doctor"
)

// TestVerdictsOnAScreen of 80 columns: what is wrong with all that is known of it, and
// commands that can be copied whole.
func TestVerdictsOnAScreen(t *testing.T) {
	verdicts := []doctor.Verdict{
		{Check: "store", Summary: "the store answers at revision 90210, with a sound config and 1205 records", Evidence: []string{"http://192.0.2.1:2379"}},
		{Check: "big-tcp", Severity: doctor.Warning, Summary: "BIG TCP is on: packets over 64 KiB do not pass through VXLAN in one piece, and throughput breaks down",
			Evidence: []string{"eth0: gso_max_size 185000"}, Remedy: []string{"Set it back:", doctor.Command("ip link set eth0 gso_max_size 65536 gro_max_size 65536 gso_ipv4_max_size 65536 gro_ipv4_max_size 65536")}},
		{Check: "entries", Severity: doctor.Failure, Peer: "worker-7", Family: "IPv4", Summary: "1 FDB entries are missing in the kernel: packets to worker-7 are lost", Evidence: []string{"missing: fdb 02:00:00:00:00:01 dev ripstop.1 dst 192.0.2.7 (of worker-7)"},
			Remedy: []string{doctor.Command("systemctl start ripstopd"), "If it ends again, its log says why:", doctor.Command("journalctl -u ripstopd")}},
		{Check: "daemon", Severity: doctor.Note, Summary: "ripstopd was stopped 2s ago, and may be about to be started again"},
		{Check: "path/overlay", Peer: "worker-8", Family: "IPv4", Summary: "the tunnel to worker-8 works both ways", Evidence: []string{"ping overlay 10.5.8.0: answered"}},
		{Check: "path/overlay", Peer: "worker-8", Family: "IPv6", Summary: "the tunnel to worker-8 works both ways", Evidence: []string{"ping overlay fd00:10:5:8::: answered"}},
	}
	doctor.Sort(verdicts)
	var b bytes.Buffer
	showVerdicts(screen{to: &b, width: 80}, verdicts, false)
	b.WriteString("----\n")
	showVerdicts(screen{to: &b, width: 80}, verdicts[2:], false)
	b.WriteString("----\n")
	showVerdicts(screen{to: &b, width: 80}, verdicts[3:], true)
	golden(t, "doctor", b.String())
	for line := range strings.Lines(b.String()) {
		if len(strings.TrimRight(line, "\n")) > 80 && !strings.Contains(line, "ip link set") {
			t.Errorf("wider than the screen: %s", line)
		}
	}
}

// TestDoctorOnAHostWithoutADaemon says so, ends with 3, and asks nobody for more than
// it was told.
func TestDoctorOnAHostWithoutADaemon(t *testing.T) {
	dir := t.TempDir()
	out, err := ripstop(t, "doctor", "-o", "json", "--check=daemon,store", "--run-dir="+dir, "--state-dir="+dir, "--subnet-file="+dir+"/none", "--env-file="+dir+"/none",
		"--cni-conf-dir="+dir, "--etcd-endpoints=http://127.0.0.1:1")
	var said *exitError
	if !errors.As(err, &said) || said.code != doctor.ExitFailures {
		t.Fatalf("%v\n%s", err, out)
	}
	var all []doctor.Verdict
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 2 || all[0].Check != "store" || all[1].Check != "daemon" || all[1].Severity < doctor.Note {
		t.Errorf("%v\n%s", err, out)
	}
	for _, bad := range [][]string{{"--output", "-o", "yaml"}, {"--check", "--check=nonsense"}} {
		if _, err := ripstop(t, append([]string{"doctor", "--env-file=" + dir + "/none", "--run-dir=" + dir}, bad[1:]...)...); err == nil || !strings.Contains(err.Error(), bad[0]) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestDaemonsSettingsAreRead from its file, unless a flag says otherwise.
func TestDaemonsSettingsAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ripstopd.env")
	text := "# a comment\nRIPSTOPD_NODE_NAME=\"worker-7\"\nRIPSTOPD_STATE_DIR=/srv/ripstop\n#RIPSTOPD_RUN_DIR=/x\nRIPSTOPD_IFACE=eth1\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var node, state, run string
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.StringVar(&node, "node-name", "", "")
	flags.StringVar(&state, "state-dir", "", "")
	flags.StringVar(&run, "run-dir", "/run/ripstop", "")
	if err := flags.Parse([]string{"--state-dir=/mine"}); err != nil {
		t.Fatal(err)
	}
	if err := settings.FromFile(flags, ripstopd.EnvPrefix, path); err != nil {
		t.Fatal(err)
	}
	if node != "worker-7" || state != "/mine" || run != "/run/ripstop" {
		t.Errorf("%q %q %q", node, state, run)
	}
	if err := settings.FromFile(flags, ripstopd.EnvPrefix, path+".none"); err != nil {
		t.Error(err)
	}
}

// TestDaemonsCommandLineIsRead as the daemon reads it: a flag that is given again adds to
// a list, one of a switch takes no word after it, what this doctor was told itself wins,
// and what it does not know is passed over.
func TestDaemonsCommandLineIsRead(t *testing.T) {
	for name, c := range map[string]struct {
		words, own                     string
		endpoints, node, checksum, run string
	}{
		"none":                    {"", "", "[http://127.0.0.1:2379]", "", "auto", "/run/ripstop"},
		"a list, given again":     {"--etcd-endpoints http://a:1 --etcd-endpoints=http://b:2 --etcd-endpoints http://c:3,http://d:4", "", "[http://a:1,http://b:2,http://c:3,http://d:4]", "", "auto", "/run/ripstop"},
		"a value, given again":    {"--node-name one --node-name two", "", "[http://127.0.0.1:2379]", "two", "auto", "/run/ripstop"},
		"a switch":                {"--ip-masq --node-name one --iptables-forward-rules=false --tx-checksum off", "", "[http://127.0.0.1:2379]", "one", "off", "/run/ripstop"},
		"a value like a flag":     {"--iface --node-name --node-name one", "", "[http://127.0.0.1:2379]", "one", "auto", "/run/ripstop"},
		"what is no flag here":    {"--iface eth0 --iface eth1 --lease-ttl 2h --run-dir /srv/run", "", "[http://127.0.0.1:2379]", "", "auto", "/srv/run"},
		"this doctor's own":       {"--etcd-endpoints http://a:1 --etcd-endpoints http://b:2 --node-name one", "--etcd-endpoints=http://mine:1", "[http://mine:1]", "one", "auto", "/run/ripstop"},
		"one of another version":  {"--not-yet=7 --node-name one", "", "[http://127.0.0.1:2379]", "one", "auto", "/run/ripstop"},
		"after the end of flags":  {"--node-name one -- --node-name two", "", "[http://127.0.0.1:2379]", "one", "auto", "/run/ripstop"},
		"its output is not asked": {"--log-level debug --version=false", "", "[http://127.0.0.1:2379]", "", "auto", "/run/ripstop"},
	} {
		flags := newDoctor().Flags()
		if err := flags.Parse(strings.Fields(c.own)); err != nil {
			t.Fatal(err)
		}
		if err := fromWords(flags, strings.Fields(c.words)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for flag, want := range map[string]string{"etcd-endpoints": c.endpoints, "node-name": c.node, "tx-checksum": c.checksum, "run-dir": c.run} {
			if got := flags.Lookup(flag).Value.String(); got != want {
				t.Errorf("%s: --%s is %q, want %q", name, flag, got, want)
			}
		}
	}
	if err := fromWords(newDoctor().Flags(), []string{"--etcd-prefix"}); err == nil {
		t.Error("a flag without its value is read")
	}
}

// TestDoctorsCommandsReachItsStore: the flags by which it reached etcd are those of the
// commands that it gives, and no password is.
func TestDoctorsCommandsReachItsStore(t *testing.T) {
	for given, want := range map[string]string{
		"": "",
		"--etcd-endpoints=http://127.0.0.1:2379 --etcd-prefix=/coreos.com/network":                                      "",
		"--etcd-endpoints=https://a:1,https://b:2 --etcd-prefix=/x --etcd-cafile=ca --etcd-certfile=c --etcd-keyfile=k": "--etcd-endpoints=https://a:1,https://b:2 --etcd-prefix=/x --etcd-cafile=ca --etcd-certfile=c --etcd-keyfile=k",
		"--etcd-username=u --etcd-password=secret":                                                                      "--etcd-username=u",
		"--etcd-username=u --etcd-password-file=/etc/p":                                                                 "--etcd-username=u --etcd-password-file=/etc/p",
	} {
		var store settings.Etcd
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		store.Register(flags)
		if err := flags.Parse(strings.Fields(given)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(store.Arguments(), " "); got != want {
			t.Errorf("%q: %q, want %q", given, got, want)
		}
	}
}
