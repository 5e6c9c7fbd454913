package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// pingOptions are the flags of ping.
type pingOptions struct {
	count    int
	interval time.Duration
	six      bool
	echo     lab.PingOptions
}

func newPing(at *place) *cobra.Command {
	var o pingOptions
	cmd := &cobra.Command{
		Use:   "ping FROM TO",
		Short: "Ping from a pod or a node to another, or to an address",
		Long: `ping sends ICMP echo requests from within the network of a pod or a node. It needs
no ping program. The exit code is 0 if every request was answered.`,
		Example: `  ripstop-lab ping pod1 pod2
  ripstop-lab ping pod1 10.5.126.2 --count 100 --interval 10ms
  ripstop-lab ping pod1 pod2 --ipv6

  # the largest packet that fits the pods' MTU: 1450 (1430 in a lab with IPv6) - 20 (IPv4) - 8 (ICMP)
  ripstop-lab ping pod1 pod2 --size 1402 --dont-fragment`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ping(cmd.Context(), cmd.OutOrStdout(), at, args[0], args[1], o)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVarP(&o.count, "count", "c", 4, "`number` of requests; 0 goes on until Ctrl-C")
	flags.DurationVarP(&o.interval, "interval", "i", 200*time.Millisecond, "`time` between requests")
	flags.IntVarP(&o.echo.Size, "size", "s", 56, "`bytes` behind the ICMP header, at least 16")
	flags.BoolVar(&o.echo.DontFragment, "dont-fragment", false, "set DF: what is larger than the MTU fails")
	flags.DurationVarP(&o.echo.Timeout, "timeout", "W", time.Second, "`time` to wait for an answer")
	flags.BoolVarP(&o.six, "ipv6", "6", false, "call a node or pod by its IPv6 address where it has both")
	return cmd
}

func ping(ctx context.Context, out io.Writer, at *place, from, to string, o pingOptions) error {
	if o.count < 0 || o.interval <= 0 || o.echo.Timeout <= 0 || o.echo.Size < 16 || o.echo.Size > 65000 {
		return usageError{fmt.Errorf("ping: --count must not be negative, --interval and --timeout must be positive, --size from 16 to 65000")}
	}
	if err := needRoot(); err != nil {
		return err
	}
	s, err := at.running()
	if err != nil {
		return err
	}
	caller, err := s.find(from)
	if err != nil {
		return err
	}
	target, err := s.target(to, o.six)
	if err != nil {
		return err
	}
	ns, err := s.open(caller)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()

	next := time.NewTicker(o.interval)
	defer next.Stop()
	sent, answered := 0, 0
	for ctx.Err() == nil {
		rtt, err := lab.Ping(ctx, ns, netip.Addr{}, target, o.echo)
		if ctx.Err() != nil {
			break
		}
		if sent++; err == nil {
			answered++
			say(out, "answer from %s: request %d, %d bytes, %s ms\n", target, sent, o.echo.Size, milliseconds(rtt))
		} else {
			say(out, "request %d: %v\n", sent, err)
		}
		if sent == o.count {
			break
		}
		select {
		case <-next.C:
		case <-ctx.Done():
		}
	}
	say(out, "%d sent, %d answered\n", sent, answered)
	if answered < sent || sent == 0 {
		return quietError{exitFailed}
	}
	return nil
}

// target is the address that a name or a text stands for.
func (s state) target(name string, six bool) (netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return a, nil
	}
	m, err := s.find(name)
	if err != nil {
		return netip.Addr{}, err
	}
	if a, ok := m.address(subnet.V4); ok && !six {
		return a, nil
	}
	if a, ok := m.address(subnet.V6); ok {
		return a, nil
	}
	if six {
		return netip.Addr{}, fmt.Errorf("%s has no IPv6 address", name)
	}
	return netip.Addr{}, fmt.Errorf("%s has no address", name)
}
