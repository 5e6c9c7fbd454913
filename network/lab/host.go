package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// Host is one machine of the lab: a namespace on the underlay, a ripstopd, and
// pods behind it.
type Host struct {
	// Name is node1, node2 and so on; it is also the name of the host's port
	// on the underlay.
	Name      string
	Namespace *Namespace
	// Dir holds the daemon's folders, its subnet file and its log.
	Dir  string
	Pods []*Pod
	// DaemonArgs are flags of this host's daemon beyond all others', from its
	// next start on.
	DaemonArgs []string
	// StoreURL is another etcd's than the lab's own, for this host's daemon from its next
	// start on.
	StoreURL string

	lab    *Lab
	number int
	seat   int // Its number on the underlay, which its addresses there are made of.
	at     segment
	mtu    int // Of its interface on the underlay.
	daemon *daemon
}

func (l *Lab) newHost(ctx context.Context, number int) (*Host, error) {
	h := &Host{Name: fmt.Sprintf("node%d", number), lab: l, number: number, seat: number, at: near, mtu: underlayMTU}
	if number > l.opts.Nodes-l.opts.Far && number <= l.opts.Nodes {
		h.at = far
	}
	if number <= len(l.opts.MTUs) && l.opts.MTUs[number-1] != 0 {
		h.mtu = l.opts.MTUs[number-1]
	}
	h.Dir = filepath.Join(l.Dir, h.Name)
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of %s: %w", h.Name, err)
	}
	var err error
	if h.Namespace, err = NewNamespace(h.Name); err != nil {
		return nil, err
	}
	if err = h.Namespace.forward(); err == nil {
		err = h.plug(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, h.Namespace.Close())
	}
	return h, nil
}

// plug connects the host to the underlay.
func (h *Host) plug(ctx context.Context) error {
	return h.lab.underlay.plug(ctx, h.at, h.Namespace, h.number, h.mtu)
}

// Address is the host's on the underlay.
func (h *Host) Address(f subnet.Family) netip.Addr { return h.at.prefix(f, h.seat).Addr() }

// SubnetFile is where the daemon writes what it leased.
func (h *Host) SubnetFile() string { return filepath.Join(h.Dir, "subnet.env") }

// LogFile is where the daemon's output goes.
func (h *Host) LogFile() string { return filepath.Join(h.Dir, "ripstopd.log") }

// Env is what the daemon says in its subnet file.
func (h *Host) Env() (envfile.Env, error) {
	env, err := envfile.Read(h.SubnetFile())
	if err == nil && env.Subnets == (subnet.Subnets{}) {
		err = fmt.Errorf("%s has no subnet yet", h.Name)
	}
	return env, err
}

// Devices names the host's VXLAN device for each family of the underlay, "" for
// one that has none.
func (h *Host) Devices() (subnet.PerFamily[string], error) {
	var names subnet.PerFamily[string]
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		links, err := n.LinkList()
		for _, link := range links {
			if v, ok := link.(*netlink.Vxlan); ok {
				local, _ := netip.AddrFromSlice(v.SrcAddr)
				names[subnet.FamilyOf(local.Unmap())] = v.Name
			}
		}
		return err
	})
	return names, err
}

// StartDaemon starts ripstopd without waiting for it.
func (h *Host) StartDaemon() error {
	if h.Running() {
		return fmt.Errorf("%s has a running ripstopd", h.Name)
	}
	_, err := os.Stat(h.SubnetFile())
	args := append([]string{
		"--etcd-endpoints=" + cmp.Or(h.StoreURL, h.lab.EtcdURL()), "--etcd-prefix=" + Prefix,
		"--ip-masq=false", "--node-name=" + h.Name,
		"--run-dir=" + filepath.Join(h.Dir, "run"), "--state-dir=" + filepath.Join(h.Dir, "state"),
		"--subnet-file=" + h.SubnetFile(), "--log-level=info",
	}, append(slices.Clone(h.lab.opts.DaemonArgs), h.DaemonArgs...)...)
	if !h.lab.opts.AnyInterface {
		args = append(args, "--iface="+hostInterface)
	}
	d, err := startDaemon(h.Namespace, h.LogFile(), err == nil, h.lab.opts.Daemon, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	h.daemon = d
	return nil
}

// WaitReady returns once the daemon is ready. Its error has the end of the
// daemon's log.
func (h *Host) WaitReady(ctx context.Context) error {
	if h.daemon == nil {
		return fmt.Errorf("%s: ripstopd was not started", h.Name)
	}
	if err := h.daemon.waitReady(ctx, h.SubnetFile()); err != nil {
		return fmt.Errorf("%s: ripstopd: %w", h.Name, err)
	}
	return nil
}

// Running tells whether the daemon's process is there.
func (h *Host) Running() bool {
	if h.daemon == nil {
		return false
	}
	select {
	case <-h.daemon.done:
		return false
	default:
		return true
	}
}

// DaemonPID is the process id of the daemon, 0 if none runs.
func (h *Host) DaemonPID() int {
	if !h.Running() {
		return 0
	}
	return h.daemon.cmd.Process.Pid
}

// DaemonLog is what the current or last run of the daemon has logged.
func (h *Host) DaemonLog() string {
	if h.daemon == nil {
		return ""
	}
	return string(h.daemon.said())
}

// StopDaemon sends a signal to the daemon and waits for its end. It returns
// how it ended and how long that took.
func (h *Host) StopDaemon(ctx context.Context, sig unix.Signal) (*os.ProcessState, time.Duration, error) {
	if !h.Running() {
		return nil, 0, fmt.Errorf("%s has no running ripstopd", h.Name)
	}
	began := time.Now()
	state, err := h.daemon.stop(ctx, sig)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: stop ripstopd: %w", h.Name, err)
	}
	return state, time.Since(began), nil
}

// RestartDaemon stops the daemon by a signal, starts it again and waits until
// it is ready.
func (h *Host) RestartDaemon(ctx context.Context, sig unix.Signal) error {
	if _, _, err := h.StopDaemon(ctx, sig); err != nil {
		return err
	}
	if err := h.StartDaemon(); err != nil {
		return err
	}
	return h.WaitReady(ctx)
}

func (h *Host) close() error {
	var errs []error
	if h.Running() {
		if err := h.daemon.end(); err != nil {
			errs = append(errs, fmt.Errorf("%s: stop ripstopd: %w", h.Name, err))
		}
	}
	for _, p := range h.Pods {
		errs = append(errs, p.Namespace.Close())
	}
	return errors.Join(append(errs, h.Namespace.Close())...)
}
