package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

func newPeers() *cobra.Command {
	var a ask
	var node, within string
	var limit int
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the nodes that this one reaches, and how",
		Long: `List the peers of this node: whose subnet is reached at which address and by which
path, the MTU, and whether the kernel has the entries for it. A peer has a line for
each family. It asks the daemon at its socket in --run-dir.`,
		Example: `  ripstop peers
  ripstop peers --node worker-7
  ripstop peers --subnet 10.5.87.12      # whose pod is that?
  ripstop peers -o json | jq -r '.peers[] | select(.ways[].entries != "yes") | .node'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := status.Query{Limit: status.MostPeers, Node: node}
			if node != "" {
				if err := subnet.CheckNodeName(node); err != nil {
					return fmt.Errorf("--node: %w", err)
				}
			}
			if within != "" {
				var err error
				if q.Within, err = status.ParseWithin(within); err != nil {
					return fmt.Errorf("--subnet: %w", err)
				}
			}
			if limit < 0 {
				return fmt.Errorf("--limit: %d is negative", limit)
			}
			return a.run(cmd, func(ctx context.Context, c *status.Client, s screen) error {
				all, err := collect(ctx, c, q, limit)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.writeJSON(s.to, all)
				}
				listPeers(s, all, a.output == "wide")
				return nil
			})
		},
	}
	a.register(cmd)
	cmd.Flags().StringVar(&node, "node", "", "only the subnets of the node of that `name`")
	cmd.Flags().StringVar(&within, "subnet", "", "only those that share addresses with a `prefix`, or hold an address")
	cmd.Flags().IntVar(&limit, "limit", 0, "the first `number` of them; 0 for all")
	for _, flag := range []string{"node", "subnet", "limit"} {
		complete(cmd, flag)
	}
	return cmd
}

// errEnough ends a collection that has what it needs.
var errEnough = errors.New("enough")

// collect makes one page of all that are asked for.
func collect(ctx context.Context, c *status.Client, q status.Query, limit int) (all status.Page, err error) {
	all.Peers = []status.Peer{}
	if limit > 0 {
		q.Limit = min(limit, q.Limit)
	}
	err = c.AllPeers(ctx, q, func(p status.Page) error {
		p.Peers = append(all.Peers, p.Peers...)
		all = p
		if limit > 0 && len(all.Peers) >= limit {
			all.Peers = all.Peers[:limit]
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	all.Continue = ""
	return all, err
}

// listPeers writes a table.
func listPeers(s screen, p status.Page, wide bool) {
	heads := []string{"NODE", "SUBNET", "ADDRESS", "PATH", "MTU", "ENTRIES"}
	if wide {
		heads = []string{"NODE", "SUBNET", "ADDRESS", "PATH", "MTU", "DEVICE", "MAC", "ENTRIES"}
	}
	var rows []row
	for _, peer := range p.Peers {
		for i, w := range peer.Ways {
			node := ""
			if i == 0 {
				node = cmp.Or(peer.Node, "-")
			}
			mtu := "-"
			if w.MTU > 0 {
				mtu = strconv.Itoa(w.MTU)
			}
			r := row{cells: []cell{{text: node}, {text: w.Subnet.String()}, {text: w.Public.String()}, {text: string(w.Path)}, {text: mtu}}}
			if wide {
				r.cells = append(r.cells, cell{text: cmp.Or(w.Device, "-")}, cell{text: cmp.Or(w.MAC, "-")})
			}
			c := entriesColour(w.Entries, peer.Held)
			r.cells = append(r.cells, cell{string(w.Entries), c})
			r.note = cell{peerNote(w, peer.Held), c}
			rows = append(rows, r)
		}
	}
	switch {
	case p.Total == 0 && p.Revision == 0: // A node that comes up; no store has that revision.
		fmt.Fprintln(s.to, "no peers yet: they have not been read from the store")
		return
	case p.Total == 0:
		fmt.Fprintln(s.to, "no peers: no other node has a lease that this one can use")
		return
	case len(rows) == 0:
		fmt.Fprintf(s.to, "none of %s matches\n", status.Count(p.Total, "peer", "peers"))
		return
	}
	s.table(heads, rows)
	if len(p.Peers) < p.Total {
		fmt.Fprintf(s.to, "%d of %s\n", len(p.Peers), status.Count(p.Total, "peer", "peers"))
	}
	if p.Backend == leasesOnly {
		for _, line := range wrap("Backend alloc: this node leases a subnet, and makes no way to others.", s.width) {
			fmt.Fprintln(s.to, line)
		}
	}
}

// leasesOnly is the backend that carries no packets.
const leasesOnly = "alloc"

func entriesColour(is status.Presence, held bool) colour {
	switch {
	case is == status.Failing:
		return red
	case is == status.Missing, is == status.Unknown, held:
		return yellow
	}
	return plain
}

// peerNote says what there is to know of a way beyond its fields.
func peerNote(w status.Way, held bool) string {
	var all []string
	if w.Reason != "" {
		all = append(all, w.Reason)
	}
	if w.Entries == status.Unknown {
		all = append(all, "the loop that knows is busy, ask again")
	}
	if held {
		all = append(all, "held: it has no record any more")
	}
	return strings.Join(all, "; ")
}
