package serve

import (
	"context"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"
)

// listenAgain is the pause after a TCP address could not be listened at.
const listenAgain = 5 * time.Second

// lateListener listens at a TCP address as soon as that can be had: another process
// may have the port, or the host may not have the address yet.
type lateListener struct {
	address string
	log     *zap.Logger

	mu      sync.Mutex
	at      net.Listener
	problem string
}

func newLateListener(address string, log *zap.Logger) *lateListener {
	return &lateListener{address: address, log: log}
}

// now tells where it listens, or is to, and why it does not, "" if it does.
func (l *lateListener) now() (address, problem string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at != nil {
		return l.at.Addr().String(), ""
	}
	return l.address, l.problem
}

// try listens, and says once why it cannot.
func (l *lateListener) try() net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at != nil {
		return l.at
	}
	at, err := net.Listen("tcp", l.address)
	if err == nil {
		l.at, l.problem = at, ""
		return at
	}
	if news := err.Error(); news != l.problem {
		l.problem = news
		l.log.Error("nothing is answered at --listen: tried again", zap.Duration("every", listenAgain), zap.Error(err))
	}
	return nil
}

// listen returns once it listens, or ctx ends, with nil.
func (l *lateListener) listen(ctx context.Context) net.Listener {
	tick := time.NewTicker(listenAgain)
	defer tick.Stop()
	for {
		if at := l.try(); at != nil {
			return at
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
