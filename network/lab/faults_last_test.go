package lab

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lastChange tells when a host's overlay changed last in the kernel. To read 80,000
// entries again and again until they are what they were takes the processors and the
// locks that the daemon needs to make them so; to listen takes little.
type lastChange struct {
	heard *Announcements
	// at is when it changed, in ns since 1970, failed what befell the listening.
	at     atomic.Int64
	failed atomic.Pointer[error]
}

// lastChangeBuffer holds what 10,000 dual-stack peers announce, in bytes.
const lastChangeBuffer = 256 << 20

func hearLastChange(t *testing.T, h *Host) *lastChange {
	t.Helper()
	c := &lastChange{}
	var err error
	c.heard, err = Hear(h.Namespace, lastChangeBuffer, []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	}, func(at time.Time, datagram []byte, err error) {
		if err != nil {
			c.failed.Store(&err)
		}
		for typ, body := range Messages(datagram) {
			if lasts(typ, body) {
				c.at.Store(at.UnixNano())
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// lasts tells whether a message may be of the overlay's entries. The kernel itself has
// and loses neighbours of the underlay all the time; those are not permanent
// (ndm_state of struct ndmsg, rtnetlink(7)).
func lasts(typ uint16, body []byte) bool {
	const stateAt = 8
	if typ != unix.RTM_NEWNEIGH && typ != unix.RTM_DELNEIGH || len(body) < stateAt+2 {
		return true
	}
	return binary.NativeEndian.Uint16(body[stateAt:])&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0
}

const (
	// calmFor is how long no change is heard before it is looked whether all is done,
	// lookAgain how long after a look that found it was not, if nothing is heard.
	calmFor   = 20 * time.Millisecond
	lookAgain = 300 * time.Millisecond
)

// until waits until all is as it was, and ends the listening. It gives the time from
// began to the last change before that, or to when that was seen where none was heard, and
// whether it came within limit.
func (c *lastChange) until(t *testing.T, began time.Time, limit time.Duration, asBefore func() bool) (time.Duration, bool) {
	t.Helper()
	defer func() {
		if err := c.heard.Close(); err != nil {
			t.Error(err)
		}
		if err := c.failed.Load(); err != nil {
			t.Errorf("the time is not known: %v", *err)
		}
	}()
	looked := began
	for {
		at := time.Unix(0, c.at.Load())
		if calm := time.Since(at) > calmFor; calm && (at.After(looked) || time.Since(looked) > lookAgain || looked == began) {
			looked = time.Now()
			if asBefore() {
				if at.Before(began) { // Nothing was heard of it.
					at = time.Now()
				}
				return at.Sub(began), at.Sub(began) <= limit
			}
			if looked.Sub(began) > limit {
				return looked.Sub(began), false
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
}
