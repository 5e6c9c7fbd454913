// Package serve answers for a daemon: on a socket in --run-dir and, if asked to,
// on TCP; it gives metrics to Prometheus and signs of life to systemd.
package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/network/status"
)

// Source is what there is to say. None of its methods holds up the loop.
type Source interface {
	// Status costs the same however many peers there are and waits for nothing.
	Status() status.Status
	// Peers returns a page. It waits no longer than ctx for what the loop knows of
	// it, and says so in the page where that came too late.
	Peers(ctx context.Context, q status.Query) status.Page
	// Beat returns nil once the loop has answered.
	Beat(ctx context.Context) error
}

// Options say where to answer.
type Options struct {
	// Dir is the folder of the socket. The caller alone may use it.
	Dir string
	// Listen is a TCP address, "" for none.
	Listen string
	// Level is the log level, which the socket changes.
	Level zap.AtomicLevel
	Log   *zap.Logger
}

// Limits that keep a slow or greedy client from holding anything for long.
const (
	headerTime   = 3 * time.Second
	readTime     = 5 * time.Second
	writeTime    = 10 * time.Second
	idleTime     = 15 * time.Second
	maxHeader    = 8 << 10
	maxTCPConns  = 256
	maxUnixConns = 64
	// profileTime is what a profile may take, on the socket.
	profileTime = 5 * time.Minute
	// peersTime bounds the wait for the loop.
	peersTime = 2 * time.Second
)

// Signs of life of the loop: asked for each beatEvery, and missed after
// beatMissed. A pass over 60,000 peers takes a second or two.
const (
	beatEvery  = 5 * time.Second
	beatMissed = 30 * time.Second
	// startEvery is beatEvery until the node is ready: who waits for that is to
	// know at once.
	startEvery = 200 * time.Millisecond
)

// Server answers. Run it once.
type Server struct {
	opts   Options
	source Source
	log    *zap.Logger
	socket *socket
	tcp    *lateListener // nil for none.
	ration *ration       // Of what is answered there.
	// beat is when the loop last answered.
	beat    atomic.Pointer[time.Time]
	metrics http.Handler
	notify  *notifier
}

// Open listens and does not answer yet. It takes the place of a socket that an
// ended daemon left behind. A TCP address that cannot be had is no error: pods need
// none, and it is tried again.
func Open(o Options, source Source) (*Server, error) {
	s := &Server{opts: o, source: source, log: o.Log, notify: newNotifier(o.Log), ration: newRation()}
	s.beats()
	registry, err := NewRegistry(s.status)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	s.metrics = metricsHandler(registry)
	if s.socket, err = listenSocket(o.Dir); err != nil {
		return nil, err
	}
	if o.Listen != "" {
		s.tcp = newLateListener(o.Listen, o.Log)
		s.tcp.try()
	}
	return s, nil
}

// Run answers until ctx ends, which returns nil and takes the socket away.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	s.answer(ctx, group, netutil.LimitListener(s.socket, maxUnixConns), s.private(), profileTime)
	if s.tcp != nil {
		group.Go(func() error {
			if at := s.tcp.listen(ctx); at != nil {
				s.log.Info("answering on TCP", zap.Stringer("address", at.Addr()))
				s.answer(ctx, group, netutil.LimitListener(at, maxTCPConns), s.public(), writeTime)
			}
			return nil
		})
	}
	group.Go(func() error { return s.pulse(ctx) })
	return group.Wait()
}

// answer serves on a listener until ctx ends.
func (s *Server) answer(ctx context.Context, group *errgroup.Group, at net.Listener, handler http.Handler, write time.Duration) {
	var conns sync.WaitGroup // Close does not wait for those who answer.
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: write, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeader, ErrorLog: zap.NewStdLog(s.log.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, is http.ConnState) {
			switch is {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed, http.StateHijacked:
				conns.Done()
			}
		},
	}
	group.Go(func() error {
		err := server.Serve(at)
		_ = server.Close() // It may have ended by itself.
		conns.Wait()
		if !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("answer on %s: %w", at.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		_ = server.Close() // Nobody's answer is worth waiting for at the end.
		return nil
	})
}

// pulse asks the loop for signs of life and hands them on to systemd.
func (s *Server) pulse(ctx context.Context) error {
	tick := time.NewTicker(min(startEvery, s.notify.every()))
	defer tick.Stop()
	defer s.notify.stopping()
	asked, answered := false, make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	for ctx.Err() == nil {
		if !asked { // One at a time: a loop that is stuck is asked no more.
			asked = true
			group.Go(func() error {
				if s.source.Beat(ctx) == nil {
					answered <- struct{}{}
				}
				return nil
			})
		}
		select {
		case <-ctx.Done():
		case <-answered:
			asked = false
			s.beats()
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		case <-tick.C:
		}
		if ctx.Err() == nil {
			if s.notify.note(s.status(), s.missed() == 0) {
				tick.Reset(min(beatEvery, s.notify.every()))
			}
		}
	}
	return group.Wait()
}

func (s *Server) beats() {
	now := time.Now()
	s.beat.Store(&now)
}

// missed is for how long the loop has not answered, 0 while that is no matter.
func (s *Server) missed() time.Duration {
	if since := time.Since(*s.beat.Load()); since > beatMissed {
		return since
	}
	return 0
}

func (s *Server) status() status.Status {
	out := s.source.Status()
	out.Daemon.Beat = *s.beat.Load()
	out.Daemon.LogLevel = s.opts.Level.String()
	if s.tcp != nil {
		out.Daemon.Listen, out.Daemon.ListenProblem = s.tcp.now()
	}
	return out
}
