// Command ripstop-cni is the CNI plugin: it gives a container an interface with
// addresses of the subnet that the node's ripstopd has leased. Container
// runtimes start it, as the CNI specification (1.1.0 and back to 0.3.1) says.
package main

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

// runLimit bounds one run of the plugin. Runtimes have limits of their own,
// four minutes for the kubelet's, and kill what exceeds them.
const runLimit = 2 * time.Minute

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: within(add), Del: within(del), Check: within(check), GC: within(collect), Status: within(status),
	}, version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), about())
}

func within(verb func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		ctx, cancel := context.WithTimeout(context.Background(), runLimit)
		defer cancel()
		return verb(ctx, args)
	}
}

// buildVersion is set by the linker. The package that the other commands have theirs
// from would link the etcd client.
var buildVersion = ""

// about is what the plugin says to somebody who starts it by hand.
func about() string {
	v := buildVersion
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version
	}
	return "ripstop-cni " + v + ": a CNI plugin, to be started by a container runtime"
}
