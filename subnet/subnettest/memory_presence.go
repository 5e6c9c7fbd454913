package subnettest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// living is a node that is known, and how often it gave a sign of life.
type living struct {
	subnet.Living
	signs int
}

// sighting is what a node that was refused saw of the one in its way.
type sighting struct {
	token string
	id    int64
	signs int
}

// Appear makes a node known as living. It is so until [Memory.Vanish] is called.
func (m *Memory) Appear(ctx context.Context, n subnet.Living) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.checkWrite(ctx)
	if id, twin := m.twin(n); err == nil && twin != nil {
		now := sighting{twin.First.Token, id, m.living[id].signs}
		// The first look is remembered: one sign after it proves life for good.
		was, met := m.sighted[n.Token]
		if met && was.token == now.token {
			twin.Lives = was != now
		} else {
			m.sighted[n.Token] = now
		}
		err = twin
	}
	if err != nil {
		return 0, fmt.Errorf("make node %s known as living: %w", n.Node, err)
	}
	delete(m.sighted, n.Token)
	maps.DeleteFunc(m.living, func(_ int64, known *living) bool { return known.Token == n.Token })
	m.lease++
	m.living[m.lease] = &living{Living: n}
	m.broadcast()
	return m.lease, nil
}

// twin is what stands in a node's way, nil for nothing: its name before an address.
func (m *Memory) twin(n subnet.Living) (id int64, found *subnet.TwinError) {
	for _, i := range slices.Sorted(maps.Keys(m.living)) {
		var twin *subnet.TwinError
		if errors.As(n.Clash(m.living[i].Living), &twin) && (found == nil || !twin.Address.IsValid()) {
			id, found = i, twin
		}
	}
	return id, found
}

// Known returns who is known under the node's name or addresses.
func (m *Memory) Known(ctx context.Context, n subnet.Living) (subnet.Living, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx); err != nil {
		return subnet.Living{}, false, fmt.Errorf("read who lives as node %s: %w", n.Node, err)
	}
	if _, twin := m.twin(n); twin != nil {
		return twin.First, true, nil
	}
	for _, known := range m.living {
		if known.Token == n.Token {
			return known.Living, true, nil
		}
	}
	return subnet.Living{}, false, nil
}

// Stay waits until ctx ends or the node has vanished. It gives a sign of life at
// once and then as often as [Memory.Renew] says, but while the store is away.
func (m *Memory) Stay(ctx context.Context, id int64) error {
	m.mu.Lock()
	again := time.NewTicker(m.renew)
	m.mu.Unlock()
	defer again.Stop()
	sign := true
	for {
		m.mu.Lock()
		known, there := m.living[id]
		away, changed := m.away, m.changed
		if ctx.Err() != nil {
			m.mu.Unlock()
			return nil
		}
		if sign && there && !away {
			sign = false
			known.signs++
		}
		m.mu.Unlock()
		if !away && !there {
			return fmt.Errorf("stay known as living: %w", subnet.ErrLeaseLost)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again.C:
			sign = true
		}
	}
}

// Vanish ends a node's life as far as the store knows of it: time ran out.
func (m *Memory) Vanish(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.living, func(_ int64, known *living) bool { return known.Node == node })
	m.broadcast()
}

// Breathe has a node that is known give a sign of life.
func (m *Memory) Breathe(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, known := range m.living {
		if known.Node == node {
			known.signs++
		}
	}
}

// Renew sets how often a Stay that begins from now on gives a sign of life; it is
// a quarter of [subnet.PresenceTTL] at first.
func (m *Memory) Renew(every time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.renew = every
}
