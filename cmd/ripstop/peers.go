package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"

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
					return writeJSON(s.to, all)
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
	var rows [][]cell
	for _, peer := range p.Peers {
		for i, w := range peer.Ways {
			node := ""
			if i == 0 {
				node = cmp.Or(peer.Node, "-")
			}
			entries, c := entriesText(w, peer.Held)
			row := []cell{{text: node}, {text: w.Subnet.String()}, {text: w.Public.String()}, {text: string(w.Path)}, {text: strconv.Itoa(w.MTU)}}
			if wide {
				row = append(row, cell{text: w.Device}, cell{text: cmp.Or(w.MAC, "-")})
			}
			rows = append(rows, append(row, cell{entries, c}))
		}
	}
	if len(rows) == 0 {
		fmt.Fprintf(s.to, "no peers (of %d)\n", p.Total)
		return
	}
	s.table(heads, rows, 0)
	if len(p.Peers) < p.Total {
		fmt.Fprintf(s.to, "%d of %d peers\n", len(p.Peers), p.Total)
	}
}

func entriesText(w status.Way, held bool) (string, colour) {
	text, c := string(w.Entries), plain
	switch w.Entries {
	case status.Failing:
		c = red
		text += ": " + w.Reason
	case status.Missing, status.Unknown:
		c = yellow
	}
	if held {
		if c == plain {
			c = yellow
		}
		text += ", held: it has no record any more"
	}
	return text, c
}
