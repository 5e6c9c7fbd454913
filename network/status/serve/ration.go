package serve

import (
	"fmt"
	"net/http"

	"golang.org/x/time/rate"

	"github.com/ripstop-net/ripstop/network/status"
)

// What strangers get of pages of peers. Each is up to 1,000 peers and some 300 KB, and one
// that asks for a node goes through all peers; 60,000 peers are listed in four seconds.
const (
	// mostPages are answered at once, slow readers' among them.
	mostPages = 4
	// pagesPerSecond are answered, after pagesAtOnce.
	pagesPerSecond = 10
	pagesAtOnce    = 20
)

// ration bounds how much is answered to all who ask.
type ration struct {
	rate *rate.Limiter
	busy chan struct{}
}

func newRation() *ration {
	return &ration{rate.NewLimiter(pagesPerSecond, pagesAtOnce), make(chan struct{}, mostPages)}
}

// of refuses what is too much, and says when to ask again.
func (r *ration) of(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		refuse := func(code int, why string) {
			w.Header().Set("Retry-After", "1")
			answer(w, code, status.Error{Error: why})
		}
		select {
		case r.busy <- struct{}{}:
			defer func() { <-r.busy }()
		default:
			refuse(http.StatusServiceUnavailable, fmt.Sprintf("%d pages of peers are being answered, which is the most: ask again in a second", mostPages))
			return
		}
		if !r.rate.Allow() {
			refuse(http.StatusTooManyRequests, fmt.Sprintf("more than %d pages of peers a second are asked for: ask again in a second, or at the socket in --run-dir", pagesPerSecond))
			return
		}
		h(w, req)
	}
}
