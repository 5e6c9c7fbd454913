package subnettest

import (
	"context"
	"fmt"

	"github.com/ripstop-net/ripstop/subnet"
)

// Release removes the lease's own record.
func (m *Memory) Release(ctx context.Context, l subnet.Lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := l.Subnets.Key()
	r, there := m.records[key]
	err := m.check(ctx)
	switch {
	case err != nil:
	case l.Reservation():
		err = subnet.ErrReserved
	case !there:
		return nil
	case !r.heldBy(key, l):
		err = subnet.ErrConflict
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", key, err)
	}
	m.remove(key)
	return nil
}

// Outage tells whether the store is away.
func (m *Memory) Outage() (subnet.Outage, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.outage, m.away
}
