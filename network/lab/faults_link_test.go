package lab

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkDown is how long etcd is paused, or cut off, at least.
const linkDown = 3 * time.Second

// outlast is that long, or until the daemon has noticed, which a suite that runs alone
// has the time for.
func (l *storeLab) outlast(t *testing.T) {
	t.Helper()
	time.Sleep(linkDown)
	if l.alone {
		t.Logf("noticed after %s", (linkDown + l.awaitStale(t)).Round(time.Millisecond))
		beSeen()
	}
}

// beSeen leaves what the status shows for a moment as it is: the look at it comes by now
// and then.
func beSeen() { time.Sleep(calm) }

// storePaused lets etcd stand still, which tells its clients nothing.
func (l *storeLab) storePaused(t *testing.T) time.Duration {
	ear := listen(t, l.first)
	l.must(t, l.Etcd.Pause())
	l.outlast(t)
	l.must(t, l.Etcd.Resume())
	began := time.Now()
	l.back(t)
	took := time.Since(began)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	return took
}

// linkCut gives the time until a host hears of a record that was written while it
// could not reach etcd.
func (l *storeLab) linkCut(t *testing.T) time.Duration {
	l.must(t, l.cutOff(l.first, true))
	l.must(t, l.put(t, ghostKey, ghostRecord(0)))
	l.outlast(t)
	if l.knowsGhost(0) {
		t.Error("the first host was not cut off")
	}
	l.must(t, l.cutOff(l.first, false))
	took := l.until(t, l.faultSuite.store, "the record written meanwhile is known", func() bool { return l.knowsGhost(0) })
	l.forgetGhost(t)
	return took
}

// slowRate is what goes from etcd to all hosts together while its link is slow,
// in bytes a second: an event is underway for about a second.
const slowRate = 4000

// linkSlow gives the time until the first host hears of a record over a slow link.
func (l *storeLab) linkSlow(t *testing.T) time.Duration {
	ear := listen(t, l.first)
	slow := func(change func(*netlink.Handle, netlink.Qdisc) error) error {
		return l.EtcdNamespace().netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
			return change(n, &netlink.Tbf{QdiscAttrs: attrs, Rate: slowRate, Limit: 1 << 20, Buffer: netlink.Xmittime(slowRate, 3000)})
		})
	}
	l.must(t, slow((*netlink.Handle).QdiscAdd))
	time.Sleep(linkDown)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	l.must(t, l.put(t, ghostKey, ghostRecord(0)))
	took := l.until(t, l.faultSuite.store, "the record is known", func() bool { return l.knowsGhost(0) })
	l.must(t, slow((*netlink.Handle).QdiscDel))
	l.forgetGhost(t)
	return took
}

// recordReplaced gives the time until a peer that is at another address, has
// another MAC and another holder is reached there.
func (l *storeLab) recordReplaced(t *testing.T) time.Duration {
	l.must(t, l.put(t, ghostKey, ghostRecord(0)))
	l.until(t, l.faultSuite.store, "the record is known", func() bool { return l.knowsGhost(0) })
	ear := listen(t, l.first)
	l.must(t, l.put(t, ghostKey, ghostRecord(1)))
	took := l.until(t, l.heal, "the other record is known", func() bool { return l.knowsGhost(1) })
	parted := false // The old FDB entries go, once nothing leads to them.
	for _, a := range ear.heard(t) {
		bridge := len(a.body) > 0 && a.body[0] == unix.AF_BRIDGE // struct ndmsg begins with the family.
		switch {
		case a.kind == unix.RTM_DELROUTE, a.kind == unix.RTM_DELNEXTHOP, a.kind == unix.RTM_DELNEIGH && !bridge,
			a.kind == unix.RTM_NEWNEIGH && !bridge && parted:
			t.Errorf("for a moment there was no way: %s", a)
		case a.kind == unix.RTM_DELNEIGH:
			parted = true
		}
	}
	l.forgetGhost(t)
	return took
}

func (l *storeLab) put(t *testing.T, key, record string) error {
	_, err := l.store.Put(t.Context(), Prefix+"/subnets/"+key, record)
	return err
}

// knowsGhost tells whether the first host has all entries of a ghost's record and
// none of another's.
func (l *storeLab) knowsGhost(n int) bool {
	have, err := picture(l.first)
	if err != nil {
		return false
	}
	record, err := readWalkRecord(ghostKey, []byte(ghostRecord(n)))
	if err != nil {
		return false
	}
	for _, e := range walkPicture(l.first, []walkRecord{record}, false) {
		if !slices.Contains(have, e) {
			return false
		}
	}
	return !slices.ContainsFunc(have, func(e string) bool { return strings.HasPrefix(e, "fdb "+ghostAddress(1-n)+" ") })
}

func (l *storeLab) forgetGhost(t *testing.T) {
	t.Helper()
	_, err := l.store.Delete(t.Context(), Prefix+"/subnets/"+ghostKey)
	l.must(t, err)
	l.until(t, l.faultSuite.store, "the record's entries are gone", l.ghostIsGone)
}

// ghostIsGone tells whether the first host has nothing of the ghost's.
func (l *storeLab) ghostIsGone() bool {
	have, err := picture(l.first)
	return err == nil && !slices.ContainsFunc(have, func(e string) bool { return strings.Contains(e, "10.5.255.0") || strings.Contains(e, "10:5:ffff") })
}

// peerMoved gives the time from a peer's start at another address until it is
// reached there, and moves it back. Pods call it all the while: what its kernel
// remembers of the old address must not last.
func (l *storeLab) peerMoved(t *testing.T) (took time.Duration) {
	peer := l.Hosts[1]
	before := mustPicture(t, l.first)
	move := func(to int) time.Duration {
		_, _, err := peer.StopDaemon(t.Context(), unix.SIGTERM)
		l.must(t, err)
		l.must(t, l.renumber(peer, to))
		began := time.Now()
		l.must(t, peer.StartDaemon())
		want := slices.Clone(before)
		if to != peer.number {
			for i := range want {
				for _, f := range l.Families() {
					want[i] = strings.Replace(want[i], "fdb "+near.prefix(f, peer.number).Addr().String()+" ", "fdb "+near.prefix(f, to).Addr().String()+" ", 1)
				}
			}
			slices.Sort(want)
		}
		l.until(t, l.faultSuite.store, "the peer is reached where it is", func() bool { return looksLike(l.first, want) })
		took := time.Since(began)
		l.must(t, peer.WaitReady(t.Context()))
		everyPairTalks(t, l.Lab, l.faultSuite.store)
		return took
	}
	const other = 101
	took = move(other)
	move(peer.number)
	return took
}

// renumber gives a host's interface other addresses, of another number.
func (l *Lab) renumber(h *Host, number int) error {
	return h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		var errs []error
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			addrs, err := n.AddrList(link, family)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip, _ := netip.AddrFromSlice(a.IP); !ip.Unmap().IsLinkLocalUnicast() {
					errs = append(errs, n.AddrDel(link, &a))
				}
			}
		}
		var gateways []netip.Prefix
		for _, g := range l.underlay.prefixes(near, gatewayNumber) {
			if g.Addr().Is4() { // Of IPv6 the default route stays.
				gateways = append(gateways, g)
			}
		}
		return errors.Join(errors.Join(errs...), configure(n, hostInterface, l.underlay.prefixes(near, number), gateways))
	})
}
