package main

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
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// envPrefix begins the environment variables: --iface is RIPSTOPD_IFACE.
const envPrefix = "RIPSTOPD"

// config is what the command line and the environment say.
type config struct {
	etcd     etcd.Options
	node     network.Options
	firewall firewall.Options
	cni      cnifiles.Options
	logLevel string
	version  bool
}

// minLeaseTTL is the least --lease-ttl: a node must outlast a reboot and a
// short loss of etcd.
const minLeaseTTL = time.Minute

// minAuditEvery is the least --audit-every: each reads all of the kernel's state.
const minAuditEvery = time.Second

func newFlags() (*pflag.FlagSet, func() (config, error)) {
	var (
		c                    config
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
	flags.StringSliceVar(&c.node.Underlay.Ifaces, "iface", nil, "`name` or address of the interface that carries the tunnel; of several the first that is there and up (by which etcd is reached, or else the default route, if no --iface… is given)")
	flags.StringArrayVar(&regexes, "iface-regex", nil, "the same by a regular `expression` that matches its name, or else one of its addresses; after --iface")
	flags.StringVar(&canReach, "iface-can-reach", "", "the same by an `address` that the host reaches by it; after --iface-regex")
	flags.StringVar(&publicIP, "public-ip", "", "IPv4 `address` at which peers reach this node (the interface's if empty); one that an interface has chooses it, any other is published alone, as for a 1:1 NAT")
	flags.StringVar(&publicIPv6, "public-ipv6", "", "IPv6 `address` at which peers reach this node, likewise")
	flags.StringVar(&c.node.SubnetFile, "subnet-file", "/run/flannel/subnet.env", "`file` in which CNI plugins and Docker find the node's subnet")
	flags.BoolVar(&c.node.IPMasq, "ip-masq", false, "masquerade what pods send out of the network, and say so in the subnet file")
	flags.StringSliceVar(&unmasqueraded, "non-masquerade-cidrs", nil, "`prefixes` outside the network to which pods' own addresses are known, not to be masqueraded")
	flags.StringVar(&guard, "guard", "on", "on or off: drop VXLAN packets of this network from others than its nodes")
	flags.StringVar(&checksum, "tx-checksum", string(host.TxChecksumAuto), "auto, on or off: leave checksums of what the VXLAN device sends to the hardware or the receiver (auto: on, but off on kernels before Linux 5.7, which get them wrong where addresses are translated)")
	flags.BoolVar(&c.firewall.ForwardRules, "iptables-forward-rules", true, "accept pods' traffic in iptables' FORWARD chain where that would drop it")
	flags.Int("iptables-resync", 0, "accepted for flannel's sake and without effect: rules are put back when they are changed")
	flags.StringVar(&c.node.Name, "node-name", "", "`name` that identifies this node to others (the host's name if empty)")
	flags.DurationVar(&ttl, "lease-ttl", subnet.DefaultLeaseTTL, "`time` for which the subnet is kept for this node when it is gone")
	flags.DurationVar(&c.node.PeerGrace, "peer-grace", network.DefaultPeerGrace, "`time` for which peers are kept whose records went with a wiped or replaced etcd (0 for none)")
	flags.DurationVar(&c.node.AuditEvery, "audit-every", network.DefaultAuditEvery, "mean `time` between comparisons of the kernel with all that it announced")
	flags.StringVar(&c.node.RunDir, "run-dir", "/run/ripstop", "`folder` for what ends with the boot")
	flags.StringVar(&c.node.StateDir, "state-dir", "/var/lib/ripstop", "`folder` for what outlives a reboot")
	flags.StringVar(&c.cni.ConfDir, "cni-conf-dir", "", "`folder` such as /etc/cni/net.d, into which a list that names the CNI plugin is put once the node is ready (nowhere if empty)")
	flags.StringVar(&c.cni.BinDir, "cni-bin-dir", "", "`folder` such as /opt/cni/bin, into which the CNI plugin ripstop-cni, which must lie beside ripstopd, is copied then (nowhere if empty)")
	flags.StringVar(&c.node.Listen, "listen", "", "TCP `address` such as 127.0.0.1:8285 at which /healthz, /readyz, /metrics and /v1/ are answered, to whoever asks (nowhere if empty; the socket in --run-dir is always there)")
	healthz.register(flags)
	flags.StringVar(&c.logLevel, "log-level", "info", "least `level` that is logged: debug, info, warn or error; 'ripstop log-level' changes it while the daemon runs")
	flags.BoolVar(&c.version, "version", false, "print the version and exit")

	return flags, func() (config, error) {
		var err error
		if c.etcd, err = store.Options(); err != nil {
			return config{}, err
		}
		if c.etcd.LeaseTTL = ttl; ttl < minLeaseTTL {
			return config{}, fmt.Errorf("--lease-ttl: %s is less than %s", ttl, minLeaseTTL)
		}
		if c.node.PeerGrace < 0 {
			return config{}, fmt.Errorf("--peer-grace: %s is negative", c.node.PeerGrace)
		}
		if c.node.AuditEvery < minAuditEvery {
			return config{}, fmt.Errorf("--audit-every: %s is less than %s", c.node.AuditEvery, minAuditEvery)
		}
		if c.firewall.Guard = guard == "on"; guard != "on" && guard != "off" {
			return config{}, fmt.Errorf("--guard: %q is neither on nor off", guard)
		}
		if c.node.TxChecksum, err = host.ParseTxChecksum(checksum); err != nil {
			return config{}, fmt.Errorf("--tx-checksum: %w", err)
		}
		c.firewall.Masquerade = c.node.IPMasq
		for _, text := range unmasqueraded {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return config{}, fmt.Errorf("--non-masquerade-cidrs: %q is no prefix in CIDR form", text)
			}
			c.firewall.Unmasqueraded = append(c.firewall.Unmasqueraded, p)
		}
		if err := c.firewall.Check(); err != nil {
			return config{}, fmt.Errorf("--non-masquerade-cidrs: %w", err)
		}
		for _, p := range []struct {
			flag, text string
			family     subnet.Family
		}{{"public-ip", publicIP, subnet.V4}, {"public-ipv6", publicIPv6, subnet.V6}} {
			if p.text == "" {
				continue
			}
			if c.node.Underlay.PublicIP[p.family], err = parsePublic(p.text, p.family); err != nil {
				return config{}, fmt.Errorf("--%s: %w", p.flag, err)
			}
		}
		for _, text := range regexes {
			re, err := regexp.Compile(text)
			if err != nil {
				return config{}, fmt.Errorf("--iface-regex: %w", err)
			}
			c.node.Underlay.Regexes = append(c.node.Underlay.Regexes, re)
		}
		if canReach != "" {
			a, err := netip.ParseAddr(canReach)
			if err != nil || a.Zone() != "" || a.Is4In6() || !subnet.Unicast(a) {
				return config{}, fmt.Errorf("--iface-can-reach: %q is no unicast address", canReach)
			}
			c.node.Underlay.CanReach = a
		}
		if slices.Contains(c.node.Underlay.Ifaces, "") {
			return config{}, errors.New("--iface: there is an empty name")
		}
		if c.node.Listen, err = healthz.listen(c.node.Listen); err != nil {
			return config{}, err
		}
		if _, err := settings.ParseLevel(c.logLevel); err != nil {
			return config{}, err
		}
		if c.node.Name == "" {
			if c.node.Name, err = os.Hostname(); err != nil {
				return config{}, fmt.Errorf("--node-name is not given and the host's name cannot be read: %w", err)
			}
		}
		if err := subnet.CheckNodeName(c.node.Name); err != nil {
			return config{}, fmt.Errorf("--node-name: %w", err)
		}
		for flag, path := range map[string]string{"subnet-file": c.node.SubnetFile, "run-dir": c.node.RunDir, "state-dir": c.node.StateDir} {
			if path == "" {
				return config{}, fmt.Errorf("--%s must not be empty", flag)
			}
		}
		c.cni.SubnetFile, c.cni.RunDir = c.node.SubnetFile, c.node.RunDir
		if c.cni.Asked() {
			if c.cni.Plugin, err = besides(cnifiles.PluginName); err != nil {
				return config{}, err
			}
			if err := c.cni.Check(); err != nil {
				return config{}, err
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

// parse reads command line and environment; the command line wins.
func parse(args []string) (config, error) {
	flags, finish := newFlags()
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("argument %q: there are flags only", flags.Arg(0))
	}
	if err := settings.FromEnvironment(flags, envPrefix); err != nil {
		return config{}, err
	}
	if v, err := flags.GetBool("version"); err == nil && v {
		return config{version: true}, nil
	}
	return finish()
}

func usage(flags *pflag.FlagSet) {
	fmt.Printf(`ripstopd leases a pod subnet from etcd and carries this node's pod traffic to its
peers, and theirs to it, in VXLAN.

Usage:
  ripstopd [flags]

Examples:
  # etcd on three machines, the interface of the default route
  ripstopd --etcd-endpoints https://10.0.0.1:2379,https://10.0.0.2:2379,https://10.0.0.3:2379 \
    --etcd-cafile /etc/ripstop/ca.crt --etcd-certfile /etc/ripstop/node.crt --etcd-keyfile /etc/ripstop/node.key

  # over a given interface, published under the address that a NAT shows
  ripstopd --etcd-endpoints http://10.0.0.1:2379 --iface eth1 --public-ip 203.0.113.7

  # the network's config must be in etcd first
  ripstop config set '{"Network": "10.5.0.0/16"}' --etcd-endpoints http://10.0.0.1:2379

Flags (each also as an environment variable: --etcd-cafile is %s; the command line wins):
%s`, settings.EnvironmentName(envPrefix, "etcd-cafile"), flags.FlagUsages())
}

func isHelp(err error) bool { return errors.Is(err, pflag.ErrHelp) }
