package ripstopd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/subnet"
)

func TestDefaults(t *testing.T) {
	c, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	host, _ := os.Hostname()
	if c.Node.Name != host || c.Node.SubnetFile != "/run/flannel/subnet.env" || c.Node.RunDir != "/run/ripstop" || c.Node.StateDir != "/var/lib/ripstop" {
		t.Errorf("node: %+v", c.Node)
	}
	if c.Node.PeerGrace != 5*time.Minute || c.Node.AuditEvery != 5*time.Minute {
		t.Errorf("peers are held for %s, the kernel is audited every %s", c.Node.PeerGrace, c.Node.AuditEvery)
	}
	if c.Etcd.Prefix != "/coreos.com/network" || c.Etcd.LeaseTTL != 24*time.Hour || c.Etcd.Endpoints[0] != "http://127.0.0.1:2379" {
		t.Errorf("etcd: %v, TTL %s", c.Etcd, c.Etcd.LeaseTTL)
	}
}

// TestEveryFlagHasAnEnvironmentVariable sets each flag by its variable and sees
// that the command line wins over it.
func TestEveryFlagHasAnEnvironmentVariable(t *testing.T) {
	values := map[string][2]string{
		"etcd-endpoints": {"http://10.0.0.1:2379,http://10.0.0.2:2379", "[http://10.0.0.1:2379,http://10.0.0.2:2379]"},
		"iface":          {"eth1,eth2", "[eth1,eth2]"}, "iface-regex": {"^eth[12],?$", `["^eth[12],?$"]`},
		"ip-masq": {"true", "true"}, "non-masquerade-cidrs": {"192.0.2.0/24,2001:db8::/32", "[192.0.2.0/24,2001:db8::/32]"},
		"guard": {"off", "off"}, "tx-checksum": {"off", "off"}, "iptables-forward-rules": {"false", "false"}, "iptables-resync": {"5", "5"}, "lease-ttl": {"2h", "2h0m0s"}, "peer-grace": {"7m", "7m0s"},
		"healthz-port": {"8285", "8285"}, "echo-port": {"9000", "9000"}, "probe-interval": {"45s", "45s"},
		"audit-every": {"2m", "2m0s"}, "version": {"", ""},
	}
	flags, _ := Flags()
	flags.VisitAll(func(f *pflag.Flag) {
		value := values[f.Name]
		if value == [2]string{} {
			value = [2]string{"from-" + f.Name, "from-" + f.Name}
		}
		if f.Name == "version" {
			return
		}
		name := "RIPSTOPD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		t.Setenv(name, value[0])
		fresh, _ := Flags()
		if err := fresh.Parse(nil); err != nil {
			t.Fatal(err)
		}
		if err := settings.FromEnvironment(fresh, EnvPrefix); err != nil {
			t.Fatal(err)
		}
		if got := fresh.Lookup(f.Name).Value.String(); got != value[1] {
			t.Errorf("%s=%s gives --%s %s", name, value[0], f.Name, got)
		}
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	})
	t.Setenv("RIPSTOPD_IFACE", "eth7")
	t.Setenv("RIPSTOPD_NODE_NAME", "env")
	c, err := Parse([]string{"--node-name", "line"})
	if err != nil || !slices.Equal(c.Node.Underlay.Ifaces, []string{"eth7"}) || c.Node.Name != "line" {
		t.Errorf("got %+v, %v", c.Node, err)
	}
}

func TestParseRefusesWithWhatToDo(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"--bogus":                           "unknown flag: --bogus",
		"extra":                             `argument "extra": there are flags only`,
		"--lease-ttl 5s":                    "--lease-ttl: 5s is less than 1m0s",
		"--lease-ttl x":                     "lease-ttl",
		"--peer-grace -1s":                  "--peer-grace: -1s is negative",
		"--public-ip fd99::1":               `--public-ip: "fd99::1" is no unicast IPv4 address`,
		"--public-ip 224.0.0.1":             "--public-ip:",
		"--public-ipv6 10.0.0.1":            "--public-ipv6:",
		"--public-ipv6 fd99::1%eth0":        "--public-ipv6:",
		"--public-ipv6 ::ffff:10.0.0.1":     "--public-ipv6:",
		"--public-ip 240.0.0.1":             "--public-ip:",
		"--iface-regex (":                   "--iface-regex: error parsing regexp",
		"--iface-can-reach here":            `--iface-can-reach: "here" is no unicast address`,
		"--iface=,":                         "--iface: there is an empty name",
		"--guard maybe":                     `--guard: "maybe" is neither on nor off`,
		"--tx-checksum maybe":               `--tx-checksum: "maybe" is none of auto, on and off`,
		"--non-masquerade-cidrs 10.0.0.0":   `--non-masquerade-cidrs: "10.0.0.0" is no prefix`,
		"--non-masquerade-cidrs 10.0.0.1/8": "--non-masquerade-cidrs: 10.0.0.1/8 is not the first address of a prefix",
		"--log-level fatal":                 "--log-level:",
		"--node-name a/b":                   "--node-name:",
		"--run-dir=":                        "--run-dir must not be empty",
		"--etcd-prefix net":                 "--etcd-prefix:",
		"--etcd-prefix /net/":               "--etcd-prefix:",
		"--etcd-endpoints 10.0.0.1:2379":    `etcd endpoint "10.0.0.1:2379" has no scheme`,
		"--etcd-endpoints=":                 "no etcd endpoint: set --etcd-endpoints",
		"--etcd-certfile /etc/node.crt":     "add --etcd-keyfile",
		"--etcd-username root":              "--etcd-username needs a password",
		"--etcd-password hunter2":           "a password needs --etcd-username",
		"--etcd-password-file /nowhere/at":  "--etcd-password-file:",
		"--audit-every 1ms":                 "--audit-every: 1ms is less than 1s",
		"--etcd-username root --etcd-password hunter2 --etcd-password-file " + secret: "give one of them",
	} {
		_, err := Parse(strings.Fields(args))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the password is in the error: %v", args, err)
		}
	}
	c, err := Parse([]string{"--etcd-username", "root", "--etcd-password-file", secret, "--public-ip", "203.0.113.7"})
	if err != nil || c.Etcd.Password != "hunter2" || c.Node.Underlay.PublicIP[subnet.V4].String() != "203.0.113.7" {
		t.Errorf("got %v, %v", c.Etcd, err)
	}
}

// TestListen: flannel's flags for it mean the same, and what cannot be listened
// at is said before anything else is done.
func TestListen(t *testing.T) {
	for _, tc := range []struct {
		args       []string
		want, fail string
	}{
		{nil, "", ""},
		{[]string{"--listen=127.0.0.1:8285"}, "127.0.0.1:8285", ""},
		{[]string{"--listen=:8285"}, ":8285", ""},
		{[]string{"--listen=[::1]:8285"}, "[::1]:8285", ""},
		{[]string{"--healthz-port=8285"}, "0.0.0.0:8285", ""},
		{[]string{"--healthz-port=8285", "--healthz-ip=::1"}, "[::1]:8285", ""},
		{[]string{"--healthz-ip=127.0.0.1"}, "", ""},
		{[]string{"--listen=8285"}, "", "127.0.0.1:8285"},
		{[]string{"--listen=example.org:80"}, "", "no IP address"},
		{[]string{"--listen=127.0.0.1:http"}, "", "no IP address"},
		{[]string{"--listen=127.0.0.1:70000"}, "", "no IP address"},
		{[]string{"--healthz-port=70000"}, "", "--healthz-port"},
		{[]string{"--healthz-port=1", "--healthz-ip=x"}, "", "--healthz-ip"},
		{[]string{"--healthz-port=1", "--listen=:1"}, "", "give one of them"},
	} {
		c, err := Parse(tc.args)
		if c.Node.Listen != tc.want || (err == nil) != (tc.fail == "") || err != nil && !strings.Contains(err.Error(), tc.fail) {
			t.Errorf("%v: %q, %v", tc.args, c.Node.Listen, err)
		}
	}
}
