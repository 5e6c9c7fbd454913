package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ripstop-net/ripstop/network/status"
)

// public is what is answered on TCP: nothing that changes anything, and of what costs
// something, no more than so much.
func (s *Server) public() http.Handler {
	mux := http.NewServeMux()
	s.common(mux, s.ration.of)
	return mux
}

// private is what is answered on the socket.
func (s *Server) private() http.Handler {
	mux := http.NewServeMux()
	s.common(mux, func(h http.HandlerFunc) http.HandlerFunc { return h })
	mux.HandleFunc("GET "+status.PathLogLevel, s.logLevel)
	mux.HandleFunc("PUT "+status.PathLogLevel, s.setLogLevel)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// common is what is answered everywhere. What costs something goes through limit.
func (s *Server) common(mux *http.ServeMux, limit func(http.HandlerFunc) http.HandlerFunc) {
	mux.HandleFunc("GET "+status.PathHealth, s.health)
	mux.HandleFunc("GET "+status.PathReady, s.ready)
	mux.Handle("GET "+status.PathMetrics, s.metrics)
	mux.HandleFunc("GET "+status.PathStatus, s.all)
	mux.HandleFunc("GET "+status.PathPeers, limit(s.peers))
}

// health tells whether the loop has answered lately. A node that waits for its
// store is in health.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if late := s.missed(); late > 0 {
		text(w, http.StatusServiceUnavailable, fmt.Sprintf("the loop has not answered for %s\n", late.Round(time.Second)))
		return
	}
	text(w, http.StatusOK, "ok\n")
}

// ready names every condition.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	now := s.status()
	code := http.StatusOK
	if !now.Ready {
		code = http.StatusServiceUnavailable
	}
	text(w, code, status.Text(now.Conditions))
}

func (s *Server) all(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.status()) }

func (s *Server) peers(w http.ResponseWriter, r *http.Request) {
	q, err := status.ParseQuery(r.URL.Query())
	if err != nil {
		answer(w, http.StatusBadRequest, status.Error{Error: err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), peersTime)
	defer cancel()
	answer(w, http.StatusOK, s.source.Peers(ctx, q))
}

func (s *Server) logLevel(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, status.LogLevel{Level: s.opts.Level.String()})
}

// maxBody bounds what a client may send, in bytes.
const maxBody = 1 << 10

func (s *Server) setLogLevel(w http.ResponseWriter, r *http.Request) {
	var ask status.LogLevel
	err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&ask)
	var level zapcore.Level
	if err == nil {
		level, err = zapcore.ParseLevel(ask.Level)
	}
	if err == nil && level > zapcore.ErrorLevel {
		err = errors.New("more than errors cannot be left out")
	}
	if err != nil {
		answer(w, http.StatusBadRequest, status.Error{Error: fmt.Sprintf("level: %v: give debug, info, warn or error", err)})
		return
	}
	if old := s.opts.Level.Level(); old != level {
		s.opts.Level.SetLevel(level)
		s.log.Info("log level changed", zap.Stringer("from", old), zap.Stringer("to", level))
	}
	s.logLevel(w, r)
}

// answer writes a value as JSON. It is made whole before the first byte goes
// out, so that nothing waits for a slow reader.
func answer(w http.ResponseWriter, code int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, "encode the answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // A reader that went is no concern of ours.
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body)
}
