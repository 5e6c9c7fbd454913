package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// shortestLease is the least that the daemon takes.
const shortestLease = time.Minute

// asleep does something while the first host's daemon is stopped for longer than its
// lease lives. That is waited for, or else a hand revokes the lease, by the request
// that etcd makes of itself when one has run out (revokeExpiredLeases).
func (l *storeLab) asleep(t *testing.T, wait bool, meanwhile func(was *mvccpb.KeyValue)) (was *mvccpb.KeyValue) {
	t.Helper()
	if wait {
		l.first.DaemonArgs = []string{"--lease-ttl=" + shortestLease.String()}
		l.must(t, l.first.RestartDaemon(t.Context(), unix.SIGTERM))
		l.until(t, l.faultSuite.store, "the peers have the host's new record", l.followed)
		defer func() { l.first.DaemonArgs = nil }()
	}
	was = l.record(l.first)
	l.must(t, standStill(l.first.DaemonPID()))
	// Whatever becomes of the test, a daemon that is stopped cannot be ended.
	defer func() { l.must(t, goOn(l.first.DaemonPID())) }()
	if !wait {
		_, err := l.store.Revoke(t.Context(), clientv3.LeaseID(was.Lease))
		l.must(t, err)
	}
	l.until(t, shortestLease+l.faultSuite.store, "the lease has lapsed", func() bool { return l.record(l.first) == nil })
	if meanwhile != nil {
		meanwhile(was)
	}
	return was
}

// overslept gives the time from a daemon's waking, its lease lapsed, until it has its
// subnet again and the peers know. A suite that runs alone has the minute for it.
func (l *storeLab) overslept(t *testing.T) time.Duration {
	was := l.asleep(t, l.alone, nil)
	took := l.claimedAgain(t, was)
	l.awaitStatus(t, "the loss is counted", func(s status.Status) bool { return s.Lease.Losses > 0 && s.Lease.Held })
	return took
}

// awaitStatus waits until the first host's daemon says something.
func (l *storeLab) awaitStatus(t *testing.T, what string, says func(status.Status) bool) {
	t.Helper()
	p := probeOf(t, l.first)
	l.until(t, l.faultSuite.store, what, func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && says(s)
	})
}

// takenFor is how long another has the first host's subnet.
const takenFor = 2 * time.Second

// taken lets another take the first host's subnet while the daemon sleeps, and gives
// the time from when it is free until the host has it again.
func (l *storeLab) taken(t *testing.T) time.Duration {
	before, env := mustPicture(t, l.first), l.subnets(t)[0]
	var key, record string
	was := l.asleep(t, false, func(was *mvccpb.KeyValue) {
		key = strings.TrimPrefix(string(was.Key), Prefix+"/subnets/")
		thief, err := subnet.ParseRecord(key, was.Value)
		l.must(t, err)
		thief.Node = "thief"
		for f := range thief.Endpoints {
			thief.Endpoints[f].MAC[5]++
		}
		thief.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr(ghostAddress(0))
		thief.Endpoints[subnet.V6].PublicIP = netip.MustParseAddr("fd99::200")
		record = string(thief.Record())
		l.must(t, l.put(t, key, record))
	})
	probe := probeOf(t, l.first)
	probe.ready(503, "[-]"+status.LeaseHeld, "thief")
	for end := time.Now().Add(takenFor); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if now := l.record(l.first); now == nil || string(now.Value) != record {
			t.Fatalf("the other's record is now %v", now)
		}
		if !looksLike(l.first, before) {
			t.Fatalf("the host is not what it was:\n%s", differs(l.first, before))
		}
		if now := l.subnets(t)[0]; now != env {
			t.Fatalf("the host's subnets are %s", now)
		}
		probe.ready(503, "[-]"+status.LeaseHeld, "thief")
	}
	if n := strings.Count(string(l.first.daemon.said()), "not ready: this node's subnet is another's"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	_, err := l.store.Delete(t.Context(), Prefix+"/subnets/"+key)
	l.must(t, err)
	took := l.claimedAgain(t, was)
	probe.ready(200)
	return took
}

// crowd are peers that are in the store alone. Beside them the real hosts are few.
const crowd = 10

// crowdKey and crowdRecord are the n-th one's.
func crowdKey(n int) string { return fmt.Sprintf("10.5.%d.0-24&fd00:10:5:ee%02x::-64", n, n) }

func crowdRecord(n int) string {
	return fmt.Sprintf(`{"PublicIP":"10.99.1.%d","PublicIPv6":"fd99::1:%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:63:72:6f:00:%02x"},`+
		`"BackendV6Data":{"VNI":1,"VtepMAC":"02:63:72:6f:06:%02x"},"Node":"crowd%d"}`, n, n, n, n, n)
}

// crowdGone deletes most of the peers in one revision, which is no ordinary leave,
// and gives the time from when they are there again until nobody is held.
func (l *storeLab) crowdGone(t *testing.T) time.Duration {
	taken := l.subnets(t)
	var members []int
	for n := 2; len(members) < crowd; n++ { // Wherever no host is.
		if !slices.ContainsFunc(taken, func(s subnet.Subnets) bool { return s[subnet.V4].Masked().Addr().As4()[2] == byte(n) }) {
			members = append(members, n)
		}
	}
	var deletes []clientv3.Op
	for _, n := range members {
		l.must(t, l.put(t, crowdKey(n), crowdRecord(n)))
		deletes = append(deletes, clientv3.OpDelete(Prefix+"/subnets/"+crowdKey(n)))
	}
	peers := len(members) + len(l.Hosts) - 1
	l.awaitStatus(t, "all are known", func(s status.Status) bool { return s.Peers.Count == peers && s.Loop.LastPass.After(s.Daemon.Started) })
	knows := func(n int) bool {
		have, err := picture(l.first)
		return err == nil && slices.ContainsFunc(have, func(e string) bool { return strings.Contains(e, fmt.Sprintf(" 10.5.%d.0/24", n)) })
	}
	l.until(t, l.faultSuite.store, "all have their routes", func() bool { return !slices.ContainsFunc(members, func(n int) bool { return !knows(n) }) })
	before := mustPicture(t, l.first)
	ear := listen(t, l.first)

	_, err := l.store.Txn(t.Context()).Then(deletes...).Commit()
	l.must(t, err)
	l.awaitStatus(t, "they are held", func(s status.Status) bool { return s.Peers.Held == len(members) && s.Peers.Count == peers })
	time.Sleep(time.Second)
	began := time.Now()
	for _, n := range members {
		l.must(t, l.put(t, crowdKey(n), crowdRecord(n)))
	}
	l.awaitStatus(t, "nobody is held", func(s status.Status) bool { return s.Peers.Held == 0 && s.Peers.Returned == len(members) })
	took := time.Since(began)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	if !looksLike(l.first, before) {
		t.Errorf("the host is not what it was:\n%s", differs(l.first, before))
	}
	// One after another they leave as any peer does.
	for _, n := range members {
		_, err := l.store.Delete(t.Context(), Prefix+"/subnets/"+crowdKey(n))
		l.must(t, err)
	}
	l.until(t, l.heal, "who left is gone", func() bool { return !slices.ContainsFunc(members, knows) })
	return took
}

// harmedSnapshot starts the first host's daemon with snapshots that are torn,
// another program's, or a newer version's, and gives the longest time until it was
// ready. The next start finds a good one again.
func (l *storeLab) harmedSnapshot(t *testing.T) (longest time.Duration) {
	ear := listen(t, l.first)
	for i, harm := range []func(whole []byte) []byte{
		func(whole []byte) []byte { return whole[:len(whole)/2] },
		func([]byte) []byte { return []byte(`{"version":1,"peers":[]}`) },
		func(whole []byte) []byte {
			return append([]byte("ripstop snapshot 99"), whole[len("ripstop snapshot 99")-1:]...)
		},
		nil,
	} {
		_, _, err := l.first.StopDaemon(t.Context(), unix.SIGTERM)
		l.must(t, err)
		if harm != nil {
			l.harmSnapshot(t, harm)
		}
		began := time.Now()
		l.must(t, l.first.StartDaemon())
		l.must(t, l.first.WaitReady(t.Context()))
		longest = max(longest, time.Since(began))
		if n, want := strings.Count(string(l.first.daemon.said()), "saved snapshot passed over"), min(1, 3-i); n != want {
			t.Errorf("start %d says %d times that it passes a snapshot over, want %d", i, n, want)
		}
	}
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	return longest
}

func (l *storeLab) harmSnapshot(t *testing.T, harm func(whole []byte) []byte) {
	t.Helper()
	file := filepath.Join(l.first.Dir, "state", "snapshot")
	whole, err := os.ReadFile(file)
	l.must(t, err)
	l.must(t, os.WriteFile(file, harm(whole), 0o600))
}

// tornWhileAway starts the daemon with a torn snapshot where etcd is away, too: it has
// nothing to go by, waits, and leaves the kernel alone. It gives the time from
// etcd's return until it is ready.
func (l *storeLab) tornWhileAway(t *testing.T) time.Duration {
	ear := listen(t, l.first)
	l.away(t, func() {
		_, _, err := l.first.StopDaemon(t.Context(), unix.SIGKILL)
		l.must(t, err)
		l.harmSnapshot(t, func(whole []byte) []byte { return whole[:len(whole)/2] })
		l.must(t, l.first.StartDaemon())
		time.Sleep(4 * time.Second) // With a good one it would have come up by now.
		l.awaitStatus(t, "it waits", func(s status.Status) bool { return s.Waiting != nil && !s.Up })
	})
	began := time.Now()
	l.must(t, l.first.WaitReady(t.Context()))
	took := time.Since(began)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	return took
}
