package subnettest

import (
	"context"
	"fmt"
	"maps"

	"github.com/ripstop-net/ripstop/subnet"
)

// Appear makes a node known as living. It is so until its Stay ends or
// [Memory.Vanish] is called.
func (m *Memory) Appear(ctx context.Context, n subnet.Living) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.check(ctx)
	for _, known := range m.living {
		if err == nil {
			err = n.Clash(known)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("make node %s known as living: %w", n.Node, err)
	}
	maps.DeleteFunc(m.living, func(_ int64, known subnet.Living) bool { return known.Token == n.Token })
	m.lease++
	m.living[m.lease] = n
	m.broadcast()
	return m.lease, nil
}

// Stay waits until ctx ends or the node has vanished.
func (m *Memory) Stay(ctx context.Context, id int64) error {
	for {
		m.mu.Lock()
		_, there := m.living[id]
		away, changed := m.away || m.refuses, m.changed
		if ctx.Err() != nil {
			m.mu.Unlock()
			return nil
		}
		m.mu.Unlock()
		if !away && !there {
			return fmt.Errorf("stay known as living: %w", subnet.ErrLeaseLost)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// Vanish ends a node's life as far as the store knows of it: time ran out.
func (m *Memory) Vanish(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.living, func(_ int64, known subnet.Living) bool { return known.Node == node })
	m.broadcast()
}
