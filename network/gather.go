package network

import "github.com/ripstop-net/ripstop/subnet"

// gathered is what several changes of the store came to.
type gathered struct {
	// deltas has one of each peer.
	deltas []subnet.Delta
	// at is where a peer's is among them, from the second change on.
	at map[subnet.Subnets]int
	// whole says that a listing was among the changes, settled that it was of
	// another epoch or that no peer is held any more, news that peers changed.
	whole, settled, news bool
}

// add adds what a change came to. Of a peer that changed before, what it was at
// first and what it is at last counts: nobody was told of what was between.
func (g *gathered) add(deltas []subnet.Delta) {
	g.news = g.news || len(deltas) > 0
	if len(g.deltas) == 0 {
		g.deltas = deltas // As a rule no other change follows.
		return
	}
	if g.at == nil {
		g.at = make(map[subnet.Subnets]int, len(g.deltas))
		for i, d := range g.deltas {
			g.at[deltaSubnets(d)] = i
		}
	}
	for _, d := range deltas {
		s := deltaSubnets(d)
		if i, ok := g.at[s]; ok {
			g.deltas[i].After = d.After
			continue
		}
		g.at[s] = len(g.deltas)
		g.deltas = append(g.deltas, d)
	}
}

// deltaSubnets are those of the peer, which it has before or after.
func deltaSubnets(d subnet.Delta) subnet.Subnets {
	if d.Before.Subnets != (subnet.Subnets{}) {
		return d.Before.Subnets
	}
	return d.After.Subnets
}
