package etcd

import (
	"context"
	"time"

	"google.golang.org/grpc/connectivity"
)

// absence is how long a connection may be gone before that is worth a word.
const absence = 2 * time.Second

// awaitLoss waits until the connection is lost, however shortly. It returns
// false if ctx ended first.
func (s *Store) awaitLoss(ctx context.Context) bool {
	// A connection that is ready again by now was away all the same.
	return s.client.ActiveConnection().WaitForStateChange(ctx, connectivity.Ready)
}

// awaitReturn waits for the connection to be ready. It calls late once if that
// takes its time. It returns false if ctx ended first.
func (s *Store) awaitReturn(ctx context.Context, late func()) bool {
	conn := s.client.ActiveConnection()
	patience, cancel := context.WithTimeout(ctx, absence)
	defer cancel()
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return true
		}
		if conn.WaitForStateChange(patience, state) {
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		late()
		patience, late = ctx, func() {}
	}
}
