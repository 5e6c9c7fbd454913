package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/network"
	"github.com/ripstop-net/ripstop/network/cleanup"
	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// cleaner has the flags of ripstop cleanup.
type cleaner struct {
	runDir, stateDir, subnetFile, confDir, node string
	release, dryRun                             bool
	store                                       settings.Etcd
}

func newCleanup() *cobra.Command {
	var c cleaner
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take away what ripstopd has made on this host",
		Long: `Take away all that ripstopd has made on this host, and nothing else: the routes and
nexthops that bear its protocol number (82), its VXLAN devices with all that hangs
on them, its nftables table and its marked rules among iptables', its saved state,
the subnet file if it has this node's subnets, and the CNI list if ripstopd wrote it.
The daemon must be stopped before: while one runs in this network namespace, with
whatever --run-dir, nothing is done. What its --run-dir holds beyond that ends with the
boot and stays, as does the CNI plugin, by which pods that are there still go. Where
flanneld runs again by then, devices that were taken over from it are given back to it,
and the subnet file stays.

The node's lease is kept, so that it finds its subnet again when it comes back. With
--release-lease it is given back to etcd, if it can be proved to be this host's;
another node may then take the subnet at once.`,
		Example: `  systemctl stop ripstopd && ripstop cleanup
  ripstop cleanup --dry-run
  ripstop cleanup --release-lease --etcd-endpoints http://10.0.0.1:2379`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&c.dryRun, "dry-run", false, "say what would go, and change nothing")
	flags.BoolVar(&c.release, "release-lease", false, "give the node's lease back to etcd too")
	flags.StringVar(&c.node, "node-name", "", "`name` of this node, for its lease (what is saved says it, else the host's name)")
	runDirFlag(cmd, &c.runDir)
	flags.StringVar(&c.stateDir, "state-dir", "/var/lib/ripstop", "the daemon's `folder` of that name")
	flags.StringVar(&c.subnetFile, "subnet-file", "/run/flannel/subnet.env", "the daemon's `file` of that name")
	flags.StringVar(&c.confDir, "cni-conf-dir", cnifiles.DefaultConfDir, "`folder` in which ripstopd may have put a CNI list (the daemon's of that name)")
	_ = cmd.MarkFlagDirname("cni-conf-dir")
	_ = cmd.MarkFlagDirname("state-dir") // The flag is there.
	c.store.Register(flags)
	return cmd
}

func (c *cleaner) run(cmd *cobra.Command) error {
	unlock, err := rundir.LockUnused(c.runDir)
	if err == nil {
		defer unlock()
		err = rundir.Announced(cmd.Context()) // With another --run-dir.
	}
	var held *rundir.HeldError
	if errors.As(err, &held) {
		return fmt.Errorf("%w: stop it first, or it would put everything back: nothing was removed", held)
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run this as root: nothing was removed", err)
	case err != nil:
		return fmt.Errorf("%w: nothing was removed", err)
	}
	k, err := kernel.Open(vxlan.OwnsDevice)
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	if err := k.Preflight(cmd.Context()); errors.Is(err, backend.ErrNotPermitted) {
		return err
	}
	name, saved, _, err := network.SavedLease(c.stateDir)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: what was saved cannot be read: %v\n", err)
	}
	// The lease goes before what is saved, by which it is known as this node's.
	rules, err := firewall.Open(firewall.Options{}, zap.NewNop())
	if err != nil {
		return err
	}
	forwarding := &cleanup.Forwarding{Kernel: k}
	if err := inUse(cmd.Context(), k, forwarding); err != nil {
		return err
	}
	all := []cleanup.Remover{forwarding, rulesOf{rules}}
	files := &cleanup.Files{SubnetFile: c.subnetFile, InUseBy: forwarding.InUseBy, Own: saved.Subnets, List: filepath.Join(c.confDir, cnifiles.ListName), Others: append(network.HalfWritten(c.stateDir),
		network.SnapshotPath(c.stateDir), c.stateDir, filepath.Join(c.runDir, status.SocketName), network.FlannelsPath(c.runDir), rundir.StartsPath(c.runDir),
	)}
	if !c.release {
		return c.clean(cmd, append(all, files))
	}
	lease, err := c.lease(cmd.Context(), k, name, saved)
	if err != nil {
		return err
	}
	return withStore(cmd.Context(), &c.store, func(s *etcd.Store) error {
		lease.Store = s
		return c.clean(cmd, append(all, lease, files))
	})
}

// inUse finds the devices that were taken over from flannel and that its daemon has
// again, where one runs.
func inUse(ctx context.Context, k *kernel.Kernel, f *cleanup.Forwarding) error {
	survey, err := k.Survey(ctx, nil)
	if err != nil {
		return fmt.Errorf("look for flannel: %w", err)
	}
	if survey.Flanneld == 0 {
		return nil
	}
	f.InUseBy = fmt.Sprintf("flanneld (process %d)", survey.Flanneld)
	for _, t := range survey.Tunnels {
		if t.Adopted {
			f.InUse = append(f.InUse, t.Name)
		}
	}
	return nil
}

// lease tells whose lease to give back.
func (c *cleaner) lease(ctx context.Context, k *kernel.Kernel, name string, saved subnet.Lease) (*cleanup.Lease, error) {
	l := &cleanup.Lease{Node: c.node}
	if l.Node == "" {
		l.Node = name
	}
	if l.Node == name {
		l.Saved = saved
	}
	if l.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("--node-name is not given and the host's name cannot be read: %w", err)
		}
		l.Node = host
	}
	interfaces, err := k.Interfaces(ctx)
	if err != nil {
		return nil, fmt.Errorf("list this host's addresses: %w", err)
	}
	for _, i := range interfaces {
		l.Addresses = append(l.Addresses, append([]netip.Addr(nil), i.Addresses...)...)
	}
	return l, nil
}

// rulesOf removes the daemon's firewall rules.
type rulesOf struct{ *firewall.Firewall }

// Find implements cleanup.Remover.
func (r rulesOf) Find(ctx context.Context) (cleanup.Finding, error) {
	ours, err := r.Firewall.Find(ctx)
	if err != nil {
		return cleanup.Finding{}, fmt.Errorf("read the firewall: %w", err)
	}
	return cleanup.Finding{Ours: ours}, nil
}

// mostListed bounds the lines about what goes; a node may have 40,000 peers.
const mostListed = 20

func (c *cleaner) clean(cmd *cobra.Command, all []cleanup.Remover) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	found, err := cleanup.Find(ctx, all...)
	if err != nil {
		return fmt.Errorf("%w: nothing was removed", err)
	}
	word := "removed"
	if c.dryRun {
		word = "would remove"
	} else if err := cleanup.Remove(ctx, all...); err != nil {
		return fmt.Errorf("%w: not all was removed, do it again once that is mended", err)
	}
	for i, line := range found.Ours {
		if i == mostListed && !c.dryRun {
			fmt.Fprintf(out, "%s %d more\n", word, len(found.Ours)-i)
			break
		}
		fmt.Fprintf(out, "%s %s\n", word, line)
	}
	for _, line := range found.Left {
		fmt.Fprintf(out, "left %s\n", line)
	}
	if len(found.Ours) == 0 {
		fmt.Fprintln(out, "there is nothing of ripstopd's on this host")
	}
	return nil
}
