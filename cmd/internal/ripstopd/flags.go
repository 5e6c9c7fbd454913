// Package ripstopd has the flags of the daemon: for itself, and for who reads what one was
// told.
package ripstopd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/network"
	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/probe"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// EnvPrefix begins the environment variables: --iface is RIPSTOPD_IFACE.
const EnvPrefix = "RIPSTOPD"

// Config is what the command line and the environment say.
type Config struct {
	Etcd     etcd.Options
	Node     network.Options
	Firewall firewall.Options
	CNI      cnifiles.Options
	LogLevel string
	// Unknown are the variables that look like a flag's and are none's.
	Unknown []string
	// Version tells that the version is to be printed, and no more.
	Version bool
}

// minLeaseTTL is the least --lease-ttl: a node must outlast a reboot and a
// short loss of etcd.
const minLeaseTTL = time.Minute

// minAuditEvery is the least --audit-every: each reads all of the kernel's state.
const minAuditEvery = time.Second

// minProbeInterval is the least --probe-interval: more often tells no more.
const minProbeInterval = time.Second

// Flags makes the flags, and what reads a Config from them once they are set.
func Flags() (*pflag.FlagSet, func() (Config, error)) {
	var (
		c                    Config
		store                settings.Etcd
		ttl                  time.Duration
		publicIP, publicIPv6 string
		regexes              []string
		canReach             string
		unmasqueraded        []string
		guard, checksum      string
		healthz              healthz
	)
	flags := pflag.NewFlagSet("ripstopd", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() { usage(flags) }
	store.Register(flags)
	flags.StringSliceVar(&c.Node.Underlay.Ifaces, "iface", nil, "`name` or address of the interface that carries the tunnel; of several the first that is there and up (by which etcd is reached, or else the default route, if no --iface… is given)")
	flags.StringArrayVar(&regexes, "iface-regex", nil, "the same by a regular `expression` that matches its name, or else one of its addresses; after --iface")
	flags.StringVar(&canReach, "iface-can-reach", "", "the same by an `address` that the host reaches by it; after --iface-regex")
	flags.StringVar(&publicIP, "public-ip", "", "IPv4 `address` at which peers reach this node (the interface's if empty); one that an interface has chooses it, any other is published alone, as for a 1:1 NAT")
	flags.StringVar(&publicIPv6, "public-ipv6", "", "IPv6 `address` at which peers reach this node, likewise")
	flags.StringVar(&c.Node.SubnetFile, "subnet-file", "/run/flannel/subnet.env", "`file` in which CNI plugins and Docker find the node's subnet")
	flags.BoolVar(&c.Node.IPMasq, "ip-masq", false, "masquerade what pods send out of the network, and say so in the subnet file")
	flags.StringSliceVar(&unmasqueraded, "non-masquerade-cidrs", nil, "`prefixes` outside the network to which pods' own addresses are known, not to be masqueraded")
	flags.StringVar(&guard, "guard", "on", "on or off: drop VXLAN packets of this network from others than its nodes")
	flags.StringVar(&checksum, "tx-checksum", string(host.TxChecksumAuto), "auto, on or off: leave checksums of what the VXLAN device sends to the hardware or the receiver (auto: on, but off on kernels before Linux 5.7, which get them wrong where addresses are translated)")
	flags.BoolVar(&c.Firewall.ForwardRules, "iptables-forward-rules", true, "accept pods' traffic in iptables' FORWARD chain where that would drop it")
	flags.Int("iptables-resync", 0, "accepted for flannel's sake and without effect: rules are put back when they are changed")
	flags.Uint16Var(&c.Node.EchoPort, "echo-port", probe.DefaultPort, "UDP `port` at which peers are answered that ask whether this node can be reached (0 for none); the same on all nodes makes it easy to let through")
	flags.DurationVar(&c.Node.ProbeInterval, "probe-interval", probe.DefaultInterval, "`time` between two turns in each of which three peers are asked whether they can be reached, at that port of theirs (0 to ask none)")
	flags.StringVar(&c.Node.Name, "node-name", "", "`name` that identifies this node to others (the host's name if empty)")
	flags.DurationVar(&ttl, "lease-ttl", subnet.DefaultLeaseTTL, "`time` for which the subnet is kept for this node when it is gone")
	flags.DurationVar(&c.Node.PeerGrace, "peer-grace", network.DefaultPeerGrace, "`time` for which peers are kept whose records went with a wiped or replaced etcd (0 for none)")
	flags.DurationVar(&c.Node.AuditEvery, "audit-every", network.DefaultAuditEvery, "mean `time` between comparisons of the kernel with all that it announced")
	flags.StringVar(&c.Node.RunDir, "run-dir", "/run/ripstop", "`folder` for what ends with the boot")
	flags.StringVar(&c.Node.StateDir, "state-dir", "/var/lib/ripstop", "`folder` for what outlives a reboot")
	flags.StringVar(&c.CNI.ConfDir, "cni-conf-dir", "", "`folder` such as /etc/cni/net.d, into which a list that names the CNI plugin is put once the node is ready (nowhere if empty)")
	flags.StringVar(&c.CNI.BinDir, "cni-bin-dir", "", "`folder` such as /opt/cni/bin, into which the CNI plugin ripstop-cni, which must lie beside ripstopd, is copied then (nowhere if empty)")
	flags.StringVar(&c.Node.Listen, "listen", "", "TCP `address` such as 127.0.0.1:8285 at which /healthz, /readyz, /metrics and /v1/ are answered, to whoever asks (nowhere if empty; the socket in --run-dir is always there)")
	healthz.register(flags)
	flags.StringVar(&c.LogLevel, "log-level", "info", "least `level` that is logged: debug, info, warn or error; 'ripstop log-level' changes it while the daemon runs")
	flags.BoolVar(&c.Version, "version", false, "print the version and exit")

	return flags, func() (Config, error) {
		var err error
		if c.Etcd, err = store.Options(); err != nil {
			return Config{}, err
		}
		if c.Etcd.LeaseTTL = ttl; ttl < minLeaseTTL {
			return Config{}, fmt.Errorf("--lease-ttl: %s is less than %s", ttl, minLeaseTTL)
		}
		if c.Node.PeerGrace < 0 {
			return Config{}, fmt.Errorf("--peer-grace: %s is negative", c.Node.PeerGrace)
		}
		if c.Node.AuditEvery < minAuditEvery {
			return Config{}, fmt.Errorf("--audit-every: %s is less than %s", c.Node.AuditEvery, minAuditEvery)
		}
		if i := c.Node.ProbeInterval; i < minProbeInterval && i != 0 {
			return Config{}, fmt.Errorf("--probe-interval: %s is less than %s", i, minProbeInterval)
		}
		if c.Firewall.Guard = guard == "on"; guard != "on" && guard != "off" {
			return Config{}, fmt.Errorf("--guard: %q is neither on nor off", guard)
		}
		if c.Node.TxChecksum, err = host.ParseTxChecksum(checksum); err != nil {
			return Config{}, fmt.Errorf("--tx-checksum: %w", err)
		}
		c.Firewall.Masquerade, c.Firewall.EchoPort = c.Node.IPMasq, c.Node.EchoPort
		for _, text := range unmasqueraded {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return Config{}, fmt.Errorf("--non-masquerade-cidrs: %q is no prefix in CIDR form", text)
			}
			c.Firewall.Unmasqueraded = append(c.Firewall.Unmasqueraded, p)
		}
		if err := c.Firewall.Check(); err != nil {
			return Config{}, fmt.Errorf("--non-masquerade-cidrs: %w", err)
		}
		for _, p := range []struct {
			flag, text string
			family     subnet.Family
		}{{"public-ip", publicIP, subnet.V4}, {"public-ipv6", publicIPv6, subnet.V6}} {
			if p.text == "" {
				continue
			}
			if c.Node.Underlay.PublicIP[p.family], err = parsePublic(p.text, p.family); err != nil {
				return Config{}, fmt.Errorf("--%s: %w", p.flag, err)
			}
		}
		for _, text := range regexes {
			re, err := regexp.Compile(text)
			if err != nil {
				return Config{}, fmt.Errorf("--iface-regex: %w", err)
			}
			c.Node.Underlay.Regexes = append(c.Node.Underlay.Regexes, re)
		}
		if canReach != "" {
			a, err := netip.ParseAddr(canReach)
			if err != nil || a.Zone() != "" || a.Is4In6() || !subnet.Unicast(a) {
				return Config{}, fmt.Errorf("--iface-can-reach: %q is no unicast address", canReach)
			}
			c.Node.Underlay.CanReach = a
		}
		if slices.Contains(c.Node.Underlay.Ifaces, "") {
			return Config{}, errors.New("--iface: there is an empty name")
		}
		if c.Node.Listen, err = healthz.listen(c.Node.Listen); err != nil {
			return Config{}, err
		}
		if _, err := settings.ParseLevel(c.LogLevel); err != nil {
			return Config{}, err
		}
		if c.Node.Name == "" {
			if c.Node.Name, err = os.Hostname(); err != nil {
				return Config{}, fmt.Errorf("--node-name is not given and the host's name cannot be read: %w", err)
			}
		}
		if err := subnet.CheckNodeName(c.Node.Name); err != nil {
			return Config{}, fmt.Errorf("--node-name: %w", err)
		}
		for flag, path := range map[string]string{"subnet-file": c.Node.SubnetFile, "run-dir": c.Node.RunDir, "state-dir": c.Node.StateDir} {
			if path == "" {
				return Config{}, fmt.Errorf("--%s must not be empty", flag)
			}
		}
		c.CNI.SubnetFile, c.CNI.RunDir = c.Node.SubnetFile, c.Node.RunDir
		if c.CNI.Asked() {
			if c.CNI.Plugin, err = besides(cnifiles.PluginName); err != nil {
				return Config{}, err
			}
			if err := c.CNI.Check(); err != nil {
				return Config{}, err
			}
		}
		return c, nil
	}
}

// besides is the path of a program in the folder of this one.
func besides(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the folder of ripstopd: %w", err)
	}
	return filepath.Join(filepath.Dir(self), name), nil
}

func parsePublic(text string, f subnet.Family) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || subnet.FamilyOf(a) != f || !subnet.Unicast(a) {
		return netip.Addr{}, fmt.Errorf("%q is no unicast %s address", text, f)
	}
	return a, nil
}

// Parse reads command line and environment; the command line wins.
func Parse(args []string) (Config, error) {
	flags, finish := Flags()
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	if flags.NArg() > 0 {
		return Config{}, fmt.Errorf("argument %q: there are flags only", flags.Arg(0))
	}
	if err := settings.FromEnvironment(flags, EnvPrefix); err != nil {
		return Config{}, err
	}
	if v, err := flags.GetBool("version"); err == nil && v {
		return Config{Version: true}, nil
	}
	c, err := finish()
	c.Unknown = settings.Unknown(flags, EnvPrefix)
	return c, err
}

func usage(flags *pflag.FlagSet) {
	fmt.Printf(`ripstopd leases a pod subnet from etcd and carries this node's pod traffic to its
peers, and theirs to it, in VXLAN.

Usage:
  ripstopd [flags]

Examples:
  # etcd on three machines, the interface by which they are reached
  ripstopd --etcd-endpoints https://10.0.0.1:2379,https://10.0.0.2:2379,https://10.0.0.3:2379 \
    --etcd-cafile /etc/ripstop/ca.crt --etcd-certfile /etc/ripstop/node.crt --etcd-keyfile /etc/ripstop/node.key

  # over a given interface, published under the address that a NAT shows
  ripstopd --etcd-endpoints http://10.0.0.1:2379 --iface eth1 --public-ip 203.0.113.7

  # the network's config must be in etcd first
  ripstop config set '{"Network": "10.5.0.0/16"}' --etcd-endpoints http://10.0.0.1:2379

Flags (each also as an environment variable: --etcd-cafile is %s; the command line wins):
%s`, settings.EnvironmentName(EnvPrefix, "etcd-cafile"), flags.FlagUsagesWrapped(settings.Columns()))
}

// IsHelp tells whether an error of Parse says that help was asked for, and given.
func IsHelp(err error) bool { return errors.Is(err, pflag.ErrHelp) }
