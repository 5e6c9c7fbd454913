package firewall

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// heard is what the listener has to tell a pass.
type heard struct {
	mu sync.Mutex
	// own says that our table may have changed, others that someone else's rules
	// at the forward hook may have; hand is who did the former.
	own, others bool
	hand        string
	// interest are the tables with rules at the forward hook.
	interest map[tableKey]bool
}

// tableKey names a table of any family.
type tableKey struct {
	family byte
	name   string
}

// all says that nothing is known.
func (h *heard) all() { h.putBack(true, true, "") }

func (h *heard) putBack(own, others bool, hand string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.own, h.others = h.own || own, h.others || others
	if hand != "" {
		h.hand = hand
	}
}

func (h *heard) take() (own, others bool, hand string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	own, others, hand = h.own, h.others, h.hand
	h.own, h.others, h.hand = false, false, ""
	return own, others, hand
}

func (h *heard) care(tables map[tableKey]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.interest = tables
}

func (h *heard) caresFor(t tableKey) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.interest[t]
}

// listen follows what the kernel announces until ctx ends. A socket that fails
// is opened again, and all is in doubt then.
func (f *Firewall) listen(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, longestRetry) {
		if heard, _ := f.follow(ctx); heard {
			wait = firstRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// follow opens the socket and reads from it until it fails or ctx ends. It tells
// whether it ever heard anything.
func (f *Firewall) follow(ctx context.Context) (any bool, err error) {
	config := &netlink.Config{}
	if f.ns != nil {
		config.NetNS = int(f.ns.Fd())
	}
	s, err := netlink.Dial(unix.NETLINK_NETFILTER, config)
	if err != nil {
		return false, fmt.Errorf("open nftables listener: %w", err)
	}
	defer func() { _ = s.Close() }()
	if err := errors.Join(s.SetReadBuffer(f.listenBuffer), s.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return false, fmt.Errorf("listen to nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	f.heard.all() // What happened before.
	f.wake()
	var e echo
	for ctx.Err() == nil {
		messages, err := s.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS): // Some were lost.
			e = echo{}
			f.heard.all()
			f.wake()
			continue
		case err != nil:
			return any, err
		}
		any = true
		f.events.Add(uint64(len(messages)))
		for _, m := range messages {
			f.hear(&e, m)
		}
	}
	return any, nil
}

// echo is what was announced of a transaction that is not at its end.
type echo struct{ own, others bool }

// hear takes one announcement. The one of the new generation ends what belongs
// to a transaction (nf_tables_gen_notify) and names the process.
func (f *Firewall) hear(e *echo, m netlink.Message) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || m.Header.PID != 0 && m.Header.PID == f.port.Load() {
		return
	}
	typ := uint16(m.Header.Type & 0xff)
	if typ == unix.NFT_MSG_NEWGEN {
		if e.own || e.others {
			f.heard.putBack(e.own, e.others, handOf(m.Data))
			f.wake()
		}
		*e = echo{}
		return
	}
	a, err := parseAnnouncement(m.Data, typ)
	switch {
	case err != nil:
		e.own, e.others = true, true
	case a.table == tableKey{unix.NFPROTO_INET, TableName}:
		e.own = true
	case a.forward || f.heard.caresFor(a.table):
		e.others = true
	}
}

// announcement is what matters of a change: where it was, and whether it is a
// chain at the forward hook.
type announcement struct {
	table   tableKey
	forward bool
}

func parseAnnouncement(data []byte, typ uint16) (a announcement, err error) {
	d, err := decoder(data)
	if err != nil {
		return a, err
	}
	a.table.family = data[0]
	for d.Next() {
		switch {
		case d.Type() == unix.NFTA_TABLE_NAME: // The same number for all kinds.
			a.table.name = d.String()
		case d.Type() == unix.NFTA_CHAIN_HOOK && (typ == unix.NFT_MSG_NEWCHAIN || typ == unix.NFT_MSG_DELCHAIN):
			d.Nested(func(h *netlink.AttributeDecoder) error {
				for h.Next() {
					if h.Type() == unix.NFTA_HOOK_HOOKNUM {
						a.forward = h.Uint32() == unix.NF_INET_FORWARD
					}
				}
				return nil
			})
		}
	}
	return a, d.Err()
}

// handOf names the process that made a generation.
func handOf(data []byte) string {
	d, err := decoder(data)
	if err != nil {
		return ""
	}
	name, pid := "", uint32(0)
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_GEN_PROC_PID:
			pid = d.Uint32()
		case unix.NFTA_GEN_PROC_NAME:
			name = d.String()
		}
	}
	if d.Err() != nil || name == "" {
		return ""
	}
	return fmt.Sprintf("%s (process %d)", name, pid)
}
