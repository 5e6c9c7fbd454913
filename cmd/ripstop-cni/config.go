package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ripstop-net/ripstop/subnet"
)

// The ways to connect a pod.
const (
	// ptp is a veth pair with a route on the host to each pod.
	ptp = "ptp"
	// bridged is a veth pair whose host end is a port of a bridge.
	bridged = "bridge"
)

// config is a network's configuration, as the runtime hands it over. Keys that
// it does not know are passed over.
type config struct {
	types.PluginConf

	Mode string `json:"mode"`
	// Bridge is the name of the bridge in bridge mode.
	Bridge string `json:"bridge"`
	// SubnetFile is what the daemon writes when it is ready.
	SubnetFile string `json:"subnetFile"`
	// DataDir has a folder of allocations for each network.
	DataDir string `json:"dataDir"`
	// RunDir is the daemon's --run-dir.
	RunDir string `json:"runDir"`
	// MTU is that of pods, in bytes; 0 takes the subnet file's.
	MTU    int  `json:"mtu"`
	IPMasq bool `json:"ipMasq"`

	RuntimeConfig struct {
		IPs          []string        `json:"ips"`
		MAC          string          `json:"mac"`
		Bandwidth    json.RawMessage `json:"bandwidth"`
		PortMappings json.RawMessage `json:"portMappings"`
	} `json:"runtimeConfig"`
}

// decode reads the configuration as far as DEL and GC need it: what is wrong
// with the rest must not keep them from cleaning up.
func decode(text []byte) (config, error) {
	c := config{Mode: ptp, Bridge: "cni0", SubnetFile: "/run/flannel/subnet.env", DataDir: "/var/lib/cni/networks", RunDir: "/run/ripstop"}
	if err := json.Unmarshal(text, &c); err != nil {
		return config{}, fail(types.ErrDecodingFailure, "", "the network's configuration cannot be read: %v", err)
	}
	for key, path := range map[string]string{"subnetFile": c.SubnetFile, "dataDir": c.DataDir, "runDir": c.RunDir} {
		if !filepath.IsAbs(path) {
			return config{}, fail(types.ErrInvalidNetworkConfig, "runtimes start plugins in folders of their choice", "%q is %q, which is no absolute path", key, path)
		}
	}
	return c, nil
}

// load reads and checks the configuration.
func load(text []byte) (config, error) {
	c, err := decode(text)
	if err != nil {
		return config{}, err
	}
	refuse := func(details, format string, args ...any) (config, error) {
		return config{}, fail(types.ErrInvalidNetworkConfig, details, format, args...)
	}
	switch {
	case !slices.Contains([]string{ptp, bridged}, c.Mode):
		return refuse("", `"mode" is %q, it may be %q or %q`, c.Mode, ptp, bridged)
	case c.Bridge == "" || len(c.Bridge) > longestName:
		return refuse("", `"bridge" is %q, an interface's name has 1 to %d characters`, c.Bridge, longestName)
	case c.IPMasq:
		return refuse(`remove "ipMasq"`, `"ipMasq" is true: it is ripstopd that masquerades what leaves the cluster (--ip-masq)`)
	case c.IPAM.Type != "":
		return refuse(`remove "ipam"`, `"ipam" names %q: ripstop-cni hands out the addresses of the node's subnet itself`, c.IPAM.Type)
	case c.MTU < 0 || c.MTU > largestMTU:
		return refuse("", `"mtu" is %d, it may be up to %d bytes`, c.MTU, largestMTU)
	}
	for key, value := range map[string]json.RawMessage{"bandwidth": c.RuntimeConfig.Bandwidth, "portMappings": c.RuntimeConfig.PortMappings} {
		if value != nil {
			plugin := map[string]string{"bandwidth": "bandwidth", "portMappings": "portmap"}[key]
			fmt.Fprintf(os.Stderr, "ripstop-cni: %q is left to the %s plugin: put it behind ripstop-cni with that capability, and take the capability away here\n", key, plugin)
		}
	}
	return c, nil
}

const (
	// longestName is IFNAMSIZ less the closing zero.
	longestName = 15
	largestMTU  = 65535
)

// leastMTU is what RFC 791 and RFC 8200 ask of every link, in bytes.
var leastMTU = subnet.PerFamily[int]{subnet.V4: 576, subnet.V6: 1280}

// wishes are what the runtime asked for this attachment in particular.
type wishes struct {
	// Addresses are the ones asked for, at most one of each family.
	Addresses subnet.PerFamily[netip.Addr]
	// MAC is the container's, nil for none in particular.
	MAC net.HardwareAddr
}

// envArgs are what CNI_ARGS may say.
type envArgs struct {
	types.CommonArgs
	IP  types.UnmarshallableString
	MAC types.UnmarshallableString
}

// wishesOf takes what was asked for from runtimeConfig or, where that is silent,
// from CNI_ARGS.
func wishesOf(c config, args string) (w wishes, err error) {
	var env envArgs
	if err := types.LoadArgs(args, &env); err != nil {
		return w, fail(types.ErrInvalidEnvironmentVariables, "IgnoreUnknown=1 passes over what a plugin does not know", "CNI_ARGS cannot be read: %v", err)
	}
	ips, mac := c.RuntimeConfig.IPs, c.RuntimeConfig.MAC
	if len(ips) == 0 && env.IP != "" {
		ips = []string{string(env.IP)}
	}
	if mac == "" {
		mac = string(env.MAC)
	}
	for _, text := range ips {
		a, err := netip.ParseAddr(text)
		if p, perr := netip.ParsePrefix(text); perr == nil {
			a, err = p.Addr(), nil
		}
		if err != nil {
			return w, fail(codeAddress, "", "the address asked for cannot be read: %v", err)
		}
		a = a.Unmap()
		f := subnet.FamilyOf(a)
		if w.Addresses[f].IsValid() {
			return w, fail(codeAddress, "", "two %s addresses are asked for, %s and %s: a pod has one", f, w.Addresses[f], a)
		}
		w.Addresses[f] = a
	}
	if mac == "" {
		return w, nil
	}
	w.MAC, err = net.ParseMAC(mac)
	if err != nil || len(w.MAC) != 6 || w.MAC[0]&1 != 0 || slices.Equal(w.MAC, make(net.HardwareAddr, 6)) {
		return w, fail(types.ErrInvalidNetworkConfig, "", "the MAC asked for, %q, is no unicast Ethernet address", mac)
	}
	return w, nil
}
