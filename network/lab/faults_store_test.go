package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// storeLab is a network whose store is harmed.
type storeLab struct {
	*Lab
	*faultSuite
	store *clientv3.Client
	first *Host
}

// storeFault is something done to the store or to a way there.
type storeFault struct {
	name   string
	breaks reach
	// do returns how long it took to heal.
	do func(*storeLab, *testing.T) time.Duration
	// signs are what the first host's daemon shows of it.
	signs []sign
}

// storeFaults come one after another in the life of one network.
var storeFaults = []storeFault{
	{"etcd killed for 3 s", nobody, (*storeLab).storeAway, []sign{storeStale, outageCounted}},
	{"etcd paused for 3 s", nobody, (*storeLab).storePaused, []sign{ifQuick(unseen("the store is silent for longer when all is well")), ifAlone(storeStale), ifAlone(outageCounted)}},
	{"link to etcd cut for 3 s, a peer comes meanwhile", nobody, (*storeLab).linkCut, []sign{changeCounted, ifAlone(storeStale), ifAlone(outageCounted)}},
	{"link to etcd slow, a peer comes meanwhile", nobody, (*storeLab).linkSlow, []sign{changeCounted}},
	{"peer with another address, MAC and holder", nobody, (*storeLab).recordReplaced, []sign{changeCounted, opsCounted}},
	{"peer restarted at another address and back", onePeer, (*storeLab).peerMoved, []sign{changeCounted, opsCounted}},
	{"route and FDB entry deleted while etcd is away", onePeer, (*storeLab).driftWhileAway, []sign{driftCounted}},
	{"device deleted while etcd is away", allPeers, (*storeLab).deviceDeletedWhileAway, []sign{storeStale, driftCounted}},
	{"etcd wiped, config written again", nobody, (*storeLab).wiped, []sign{listingCounted, peersHeld, holdReturned}},
	{"etcd wiped, a peer never comes back", nobody, (*storeLab).wipedForGood, []sign{peersHeld, holdExpired}},
	{"own record deleted", allPeers, (*storeLab).recordDeleted, []sign{lossCounted}},
	{"own etcd lease revoked", allPeers, (*storeLab).leaseRevoked, []sign{lossCounted}},
	{"compaction while cut off from etcd", nobody, (*storeLab).compactedWhileCutOff, []sign{changeCounted}},
	{"compaction while cut off from etcd, a peer left", nobody, (*storeLab).compactedAwayPeer, []sign{listingCounted}},
	{"daemon stopped for longer than its lease lives", allPeers, (*storeLab).overslept, []sign{lossCounted}},
	{"own subnet taken by another meanwhile", allPeers, (*storeLab).taken, []sign{lossCounted, failed(status.LeaseHeld)}},
	{"peer left while the daemon was down", nobody, (*storeLab).leftWhileDown, []sign{anotherDaemon, fewerPeers}},
	{"daemon started while etcd is away", nobody, (*storeLab).startedWhileAway, []sign{anotherDaemon, fromSaved}},
	{"entry changed by hand after a start without etcd", onePeer, (*storeLab).changedAfterStartWhileAway, []sign{anotherDaemon, fromSaved, driftCounted}},
	{"device lost while etcd and daemon are away", allPeers, (*storeLab).deviceLostWhileAway, []sign{anotherDaemon, fromSaved, opsCounted}},
	{"rebooted while etcd is away", allPeers, (*storeLab).rebootedWhileAway, []sign{anotherDaemon, fromSaved, opsCounted}},
	{"snapshot torn or another program's at a start", nobody, (*storeLab).harmedSnapshot, []sign{anotherDaemon}},
	{"snapshot torn at a start while etcd is away", nobody, (*storeLab).tornWhileAway, []sign{anotherDaemon, itWaits}},
	// What is saved then has the dozen for a while: of a start by that, all would be held.
	{"most of a dozen peers gone in one revision", nobody, (*storeLab).crowdGone, []sign{peersHeld, holdReturned}},
}

// storeFaults does to the store, and to the first host's ways to it, what
// happens to them.
func (s *faultSuite) storeFaults(t *testing.T) {
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	sl := &storeLab{Lab: l, faultSuite: s, store: openStore(t, l), first: l.Hosts[0]}
	for _, f := range storeFaults {
		ok := t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
			// A claim of before is to be settled with the peers, too.
			if _, settled := timeUntil(s.store, sl.followed); !settled {
				t.Fatalf("no rest before the fault: %s", sl.unfollowed())
			}
			everyPairTalks(t, l, talkLimit)
			before := sl.subnets(t)
			looks := startLook(t, sl.first, s.shownBy(f.signs))
			flows := startFlows(t, l)
			time.Sleep(calm)
			began := time.Now()
			healed := f.do(sl, t)
			took := time.Since(began)
			time.Sleep(calm)
			row := stopFlows(t, l, flows, f.breaks)
			if row.gap > took+s.heal {
				t.Errorf("no answer for %s", row.gap)
			}
			if after := sl.subnets(t); !slices.Equal(after, before) {
				t.Errorf("subnets are %v, before they were %v", after, before)
			}
			row.lab, row.fault, row.healed = "dual", f.name, healed
			s.add(row, looks.end(t))
		})
		if !ok {
			return // What comes next counts on a network that is whole.
		}
	}
}

// subnets lists those of the first three hosts as they have them.
func (l *storeLab) subnets(t *testing.T) []subnet.Subnets {
	t.Helper()
	var out []subnet.Subnets
	for _, h := range l.Hosts[:3] {
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, env.Subnets)
	}
	return out
}

// record is a host's in the store, nil if there is none.
func (l *storeLab) record(h *Host) *mvccpb.KeyValue {
	env, err := h.Env()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	answer, err := l.store.Get(ctx, Prefix+"/subnets/"+env.Subnets.Key())
	if err != nil || len(answer.Kvs) == 0 {
		return nil
	}
	return answer.Kvs[0]
}

// unfollowed says what is missing: a record of a running host, or a route to it on
// another one that runs; "" if nothing is.
func (l *storeLab) unfollowed() string {
	for _, h := range l.Hosts {
		if !h.Running() {
			continue
		}
		if l.record(h) == nil {
			return h.Name + " has no record"
		}
		have, err := picture(h)
		if err != nil {
			return fmt.Sprintf("%s: %v", h.Name, err)
		}
		for _, peer := range l.Hosts {
			if peer == h || !peer.Running() {
				continue
			}
			env, err := peer.Env()
			if err != nil {
				return fmt.Sprintf("%s: %v", peer.Name, err)
			}
			if !mentions(have, peer, env.Subnets) {
				return fmt.Sprintf("%s does not reach %s at %s", h.Name, peer.Name, env.Subnets)
			}
		}
	}
	return ""
}

func (l *storeLab) followed() bool { return l.unfollowed() == "" }

func (l *storeLab) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits and fails the test if it takes longer than limit.
func (l *storeLab) until(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	took, in := timeUntil(limit, ok)
	if !in {
		t.Fatalf("not within %s: %s", limit, what)
	}
	return took
}

// away kills etcd, and brings it back at the end of do.
func (l *storeLab) away(t *testing.T, do func()) {
	t.Helper()
	l.must(t, l.Etcd.Kill())
	do()
	l.must(t, l.Etcd.Restart(t.Context()))
}

// back waits until the first host has its store again: a record that another
// hand writes is noticed.
func (l *storeLab) back(t *testing.T) {
	t.Helper()
	key := fmt.Sprintf("rubbish-%d", time.Now().UnixNano())
	l.until(t, l.faultSuite.store, "the client has etcd again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := l.store.Put(ctx, Prefix+"/subnets/"+key, "no JSON")
		return err == nil
	})
	l.until(t, l.faultSuite.store, "the watch goes on", func() bool { return strings.Contains(l.first.DaemonLog(), key) })
	if _, err := l.store.Delete(t.Context(), Prefix+"/subnets/"+key); err != nil {
		t.Fatal(err)
	}
}

func (l *storeLab) storeAway(t *testing.T) time.Duration {
	ear := listen(t, l.first)
	l.away(t, func() { time.Sleep(3 * time.Second) })
	l.back(t)
	time.Sleep(calm)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	return 0
}

func (l *storeLab) driftWhileAway(t *testing.T) (healed time.Duration) {
	before := mustPicture(t, l.first)
	l.away(t, func() {
		time.Sleep(calm)
		l.must(t, deleteEntries(func(e target) bool { return e.peer && (e.kind == "route" || e.kind == "fdb") })(t, l.Lab, l.first))
		healed = l.until(t, l.heal, "the entries are back", func() bool { return looksLike(l.first, before) })
	})
	l.back(t)
	return healed
}

// deviceDeletedWhileAway is what else the daemon mends from its mirror, which then has
// all to give.
func (l *storeLab) deviceDeletedWhileAway(t *testing.T) (healed time.Duration) {
	before := mustPicture(t, l.first)
	l.away(t, func() {
		l.awaitStale(t)
		l.must(t, vxlans(l.first, func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkDel(v) }))
		healed = l.until(t, l.heal, "the device is back with all entries", func() bool { return looksLike(l.first, before) })
	})
	l.back(t)
	return healed
}

// staleAfter bounds the time after which a store that says nothing is known to be
// away: the connection asks for a sign now and then, and waits for that.
const staleAfter = time.Minute

// awaitStale waits until the first host's daemon says that its store is away.
func (l *storeLab) awaitStale(t *testing.T) time.Duration {
	t.Helper()
	p := probeOf(t, l.first)
	return l.until(t, staleAfter, "the store is away", func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && s.Store.State == status.Stale && s.Store.Outage != nil
	})
}

func (l *storeLab) wiped(t *testing.T) time.Duration {
	var before [][]string
	for _, h := range l.Hosts {
		before = append(before, mustPicture(t, h))
	}
	ear := listen(t, l.first)
	l.must(t, l.Etcd.Wipe(t.Context()))
	l.must(t, l.SetConfig(t.Context(), UsualConfig(l.Mode())))
	took := l.until(t, l.faultSuite.store, "all have claimed their subnets again", func() bool {
		return !slices.ContainsFunc(l.Hosts, func(h *Host) bool { return l.record(h) == nil })
	})
	l.back(t)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	for i, h := range l.Hosts {
		if !looksLike(h, before[i]) {
			t.Errorf("%s is not what it was:\n%s", h.Name, differs(h, before[i]))
		}
	}
	return took
}

// graceInTests is how long the first host holds peers where that is waited for, to
// the end.
const graceInTests = 3 * time.Second

// wipedForGood gives the time for which a peer is held that does not claim its subnet
// again. The others, who do, are to be there all the while.
func (l *storeLab) wipedForGood(t *testing.T) time.Duration {
	l.must(t, l.put(t, ghostKey, ghostRecord(0)))
	l.until(t, l.faultSuite.store, "the record is known", func() bool { return l.knowsGhost(0) })
	l.first.DaemonArgs = []string{"--peer-grace=" + graceInTests.String()}
	l.must(t, l.first.RestartDaemon(t.Context(), unix.SIGTERM))
	began := time.Now() // The daemon may know of it before this process does.
	l.must(t, l.Etcd.Wipe(t.Context()))
	l.must(t, l.SetConfig(t.Context(), UsualConfig(l.Mode())))
	l.until(t, l.faultSuite.store, "all have claimed their subnets again", l.followed)
	l.until(t, graceInTests+l.faultSuite.store, "the peer is held no longer", func() bool {
		// Whatever is written has the daemon look how late it is.
		_, err := l.store.Put(t.Context(), Prefix+"/config", UsualConfig(l.Mode()))
		return err == nil && l.ghostIsGone()
	})
	took := time.Since(began)
	if took < graceInTests {
		t.Errorf("the peer was held for %s, want %s", took, graceInTests)
	}
	l.must(t, l.put(t, ghostKey, ghostRecord(0))) // The other hosts hold it for longer.
	l.forgetGhost(t)
	beSeen() // The count of holds that expired ends with the daemon.
	l.first.DaemonArgs = nil
	l.must(t, l.first.RestartDaemon(t.Context(), unix.SIGTERM))
	return took
}

// claimedAgain waits until the first host has another record for its subnet.
func (l *storeLab) claimedAgain(t *testing.T, was *mvccpb.KeyValue) time.Duration {
	t.Helper()
	return l.until(t, l.heal, "the subnet is claimed again", func() bool {
		now := l.record(l.first)
		return now != nil && now.CreateRevision != was.CreateRevision && l.followed()
	})
}

func (l *storeLab) recordDeleted(t *testing.T) time.Duration {
	was := l.record(l.first)
	if _, err := l.store.Delete(t.Context(), string(was.Key)); err != nil {
		t.Fatal(err)
	}
	return l.claimedAgain(t, was)
}

func (l *storeLab) leaseRevoked(t *testing.T) time.Duration {
	was := l.record(l.first)
	if _, err := l.store.Revoke(t.Context(), clientv3.LeaseID(was.Lease)); err != nil {
		t.Fatal(err)
	}
	return l.claimedAgain(t, was)
}

// compactedWhileCutOff lets a host join while the first cannot reach etcd, and
// etcd forget how.
func (l *storeLab) compactedWhileCutOff(t *testing.T) time.Duration {
	return l.compactedAway(t, "the host that joined meanwhile is known", func() {
		if _, err := l.AddHost(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// compactedAwayPeer lets a peer leave meanwhile.
func (l *storeLab) compactedAwayPeer(t *testing.T) time.Duration {
	l.must(t, l.put(t, ghostKey, ghostRecord(0)))
	l.until(t, l.faultSuite.store, "the record is known", func() bool { return l.knowsGhost(0) })
	return l.compactedAway(t, "the peer that left meanwhile is gone", func() {
		_, err := l.store.Delete(t.Context(), Prefix+"/subnets/"+ghostKey)
		l.must(t, err)
	})
}

// compactedAway has something happen while the first host cannot reach etcd, whose
// watch there must be taken up anew afterwards, and etcd forget it.
func (l *storeLab) compactedAway(t *testing.T, what string, meanwhile func()) time.Duration {
	l.must(t, l.cutOff(l.first, true))
	l.must(t, l.Etcd.Kill()) // What etcd has sent would come through afterwards.
	l.must(t, l.Etcd.Restart(t.Context()))
	meanwhile()
	time.Sleep(2 * time.Second)
	answer, err := l.store.Put(t.Context(), "/elsewhere", "") // What is of the last revision can still be watched.
	l.must(t, err)
	_, err = l.store.Compact(t.Context(), answer.Header.Revision, clientv3.WithCompactPhysical())
	l.must(t, err)
	if l.followed() && !l.knowsGhost(0) {
		t.Error("the first host was not cut off")
	}
	l.must(t, l.cutOff(l.first, false))
	return l.until(t, l.faultSuite.store, what, func() bool { return l.ghostIsGone() && l.followed() })
}

// cutOff drops what a host and etcd send each other, or no longer does. Nobody
// else's packets are touched.
func (l *Lab) cutOff(h *Host, on bool) error {
	f := l.Families()[0]
	blackhole := func(at *Namespace, to netip.Addr) error {
		route := &netlink.Route{Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}, Type: unix.RTN_BLACKHOLE}
		return at.netlink(func(n *netlink.Handle) error {
			if on {
				return n.RouteAdd(route)
			}
			return n.RouteDel(route)
		})
	}
	return errors.Join(blackhole(h.Namespace, l.EtcdAddress(f)), blackhole(l.EtcdNamespace(), h.Address(f)))
}

// leftWhileDown takes the fourth host away for good while the first host's
// daemon is down.
func (l *storeLab) leftWhileDown(t *testing.T) time.Duration {
	gone := l.Hosts[3]
	env, err := gone.Env()
	l.must(t, err)
	if _, _, err := gone.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.first.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := l.store.Delete(t.Context(), Prefix+"/subnets/"+env.Subnets.Key()); err != nil {
		t.Fatal(err)
	}
	if !mentions(mustPicture(t, l.first), gone, env.Subnets) {
		t.Error("a host without a daemon has lost entries")
	}
	l.must(t, l.first.StartDaemon())
	took := l.until(t, l.faultSuite.store, "the peer that left is gone", func() bool {
		have, err := picture(l.first)
		return err == nil && !mentions(have, gone, env.Subnets)
	})
	l.must(t, l.first.WaitReady(t.Context()))
	l.must(t, gone.close())
	l.Hosts = l.Hosts[:3]
	return took
}

// startedWhileAway gives the time until the daemon says that it is ready, of
// which it waits for etcd for three seconds.
func (l *storeLab) startedWhileAway(t *testing.T) (took time.Duration) {
	ear := listen(t, l.first)
	l.away(t, func() {
		began := time.Now()
		l.must(t, l.first.RestartDaemon(t.Context(), unix.SIGKILL))
		took = time.Since(began)
	})
	l.back(t)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	return took
}

// changedAfterStartWhileAway changes entries of the second host's, and adds some, when
// the daemon has nothing to go by but what it saved and what it found.
func (l *storeLab) changedAfterStartWhileAway(t *testing.T) (healed time.Duration) {
	before := mustPicture(t, l.first)
	l.away(t, func() {
		l.must(t, l.first.RestartDaemon(t.Context(), unix.SIGKILL))
		l.must(t, changeEntries(backend.KindFDB, backend.KindNeighbour)(t, l.Lab, l.first))
		healed = l.until(t, l.heal, "the entries are as they were", func() bool { return looksLike(l.first, before) })
	})
	l.back(t)
	return healed
}

func (l *storeLab) deviceLostWhileAway(t *testing.T) (took time.Duration) {
	before := mustPicture(t, l.first)
	l.away(t, func() {
		_, _, err := l.first.StopDaemon(t.Context(), unix.SIGTERM)
		l.must(t, err)
		l.must(t, vxlans(l.first, func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkDel(v) }))
		began := time.Now()
		l.must(t, l.first.StartDaemon())
		l.must(t, l.first.WaitReady(t.Context()))
		l.until(t, l.heal, "the overlay is there again", func() bool { return looksLike(l.first, before) })
		took = time.Since(began)
	})
	l.back(t)
	return took
}

// rebootedWhileAway gives the time from a boot, after a crash, until the host has the
// overlay that it had, of which the daemon waits for etcd for a second. What the store
// knows of its earlier life is forgotten at the end, as it is a minute later.
func (l *storeLab) rebootedWhileAway(t *testing.T) (took time.Duration) {
	before, macs, record := mustPicture(t, l.first), vtepMACs(t, l.first), l.record(l.first)
	env, err := l.first.Env()
	l.must(t, err)
	l.away(t, func() {
		began := time.Now()
		boot(t, l.first)
		l.must(t, l.first.WaitReady(t.Context()))
		l.until(t, l.heal, "the overlay is there again", func() bool { return looksLike(l.first, before) })
		took = time.Since(began)
		if now, err := l.first.Env(); err != nil || now != env {
			t.Errorf("subnet file says %v (%v), before it said %v", now, err, env)
		}
		if now := vtepMACs(t, l.first); !maps.Equal(now, macs) {
			t.Errorf("the devices have %v, had %v", now, macs)
		}
		everyPairTalks(t, l.Lab, talkLimit)
	})
	l.back(t)
	got, err := l.store.Get(t.Context(), Prefix+"/ripstop/nodes/"+l.first.Name)
	l.must(t, err)
	if len(got.Kvs) == 1 {
		_, err := l.store.Revoke(t.Context(), clientv3.LeaseID(got.Kvs[0].Lease))
		l.must(t, err)
	}
	l.until(t, 2*l.faultSuite.store, "the lease is taken up", func() bool { return strings.Contains(string(l.first.daemon.said()), `"msg":"lease held"`) })
	if now := l.record(l.first); now == nil || now.ModRevision != record.ModRevision {
		t.Errorf("the record is %v, was %v", now, record)
	}
	return took
}
