package network

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/underlay"
)

// TestSlowNamesHoldUpNoNews: as long as the store's names are looked up, who hears the
// kernel's news is told at once which of them matter.
func TestSlowNamesHoldUpNoNews(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	s := newSight(newRig(t).host, underlay.Wish{}, func(context.Context) ([]netip.Addr, error) {
		close(asked)
		<-answer
		return []netip.Addr{netip.MustParseAddr("10.99.0.253")}, nil
	})
	looked := make(chan underlay.Host, 1)
	go func() {
		seen, err := s.look(t.Context())
		if err != nil {
			t.Error(err)
		}
		looked <- seen
	}()
	<-asked
	told := make(chan bool, 1)
	go func() { told <- s.leads(netip.MustParsePrefix("10.99.0.0/16")) }()
	select {
	case leads := <-told:
		if leads {
			t.Error("a name that is not looked up yet leads somewhere")
		}
	case <-time.After(30 * time.Second):
		t.Error("not told while names are looked up")
	}
	close(answer)
	if seen := <-looked; len(seen.Store) != 1 || !s.leads(netip.MustParsePrefix("10.99.0.0/16")) || s.partly() {
		t.Errorf("after the look-up: %+v", seen)
	}
}
