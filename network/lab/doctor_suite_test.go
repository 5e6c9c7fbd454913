package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// asked says where the doctor is asked for a fault of the suite.
type asked struct {
	// test and row are where it is made to last, and named: a test of this package and a
	// name in its table.
	test, row string
	// why is the reason why nothing is to be named.
	why string
}

// Reasons why nothing is to be named.
const (
	followed  = "the daemon has followed before anybody can ask, and all is as it should be then"
	sameAfter = "what is left of it is what was there before"
)

// suiteNamed says of each fault of the suite which test holds the doctor to it, by the
// tables of the suite. Those of the host are in lasting and brief.
var suiteNamed = map[string]asked{
	"underlay: another address is to be used, the old one goes long after": {why: followed},
	"underlay: the way to etcd goes over to another interface":             {why: followed},
	"underlay: the way to etcd comes back":                                 {why: followed},
	"direct route deleted":                                                 {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "direct route deleted"},
	"direct route given another gateway":                                   {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "direct route given another gateway"},
	"device deleted beside direct routes":                                  {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "device deleted beside direct routes"},
	"direct: carrier lost and back":                                        {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "carrier lost"},
	"direct: carrier lost and back five times":                             {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "carrier lost"},
	"direct: IPv4 addresses flushed and given back":                        {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "IPv4 addresses flushed"},
	"direct: interface set down and up":                                    {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "interface set down"},
	"direct: interface deleted and made again":                             {test: "TestDoctorNamesFaultsOfDirectRoutes", row: "interface deleted"},
	"underlay: address gone and back":                                      {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "address gone"},
	"underlay: MTU down":                                                   {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "MTU down"},
	"underlay: MTU up":                                                     {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "MTU up"},
	"underlay: interface made again as it was":                             {why: sameAfter},
	"etcd killed for 3 s":                                                  {test: "TestDoctorNamesFaultsOfTheStore", row: "etcd killed"},
	"etcd paused for 3 s":                                                  {test: "TestDoctorNamesFaultsOfTheStore", row: "etcd paused"},
	"link to etcd slow, a peer comes meanwhile":                            {why: "it answers, if late, and the peer is there in the end"},
	"compaction while cut off from etcd, a peer left":                      {why: followed},
	"compaction while cut off from etcd":                                   {why: followed},
	"etcd wiped, a peer never comes back":                                  {test: "TestDoctorNamesFaultsOfTheStore", row: "peers are held"},
	"most of a dozen peers gone in one revision":                           {test: "TestDoctorNamesFaultsOfTheStore", row: "peers are held"},
	"own record deleted":                                                   {test: "TestDoctorNamesFaults", row: "own record deleted"},
	"own etcd lease revoked":                                               {test: "TestDoctorNamesFaultsOfTheStore", row: "own lease revoked"},
	"own subnet taken by another meanwhile":                                {test: "TestDoctorNamesFaultsOfTheStore", row: "own subnet taken"},
	"peer left while the daemon was down":                                  {test: "TestDoctorNamesFaultsOfTheStore", row: "peer left"},
	"daemon started while etcd is away":                                    {test: "TestDoctorNamesFaultsOfTheStore", row: "started without etcd"},
	"snapshot torn or another program's at a start":                        {why: "with etcd there the store is read, and what was saved is written anew"},
	"snapshot torn at a start while etcd is away":                          {test: "TestDoctorNamesFaultsOfTheStore", row: "snapshot torn, etcd away"},
	"restarts of the daemon, one in ten with etcd":                         {test: "TestDoctorFindsNothing", why: "a restart is no fault"},
	"peer restarted at another address and back":                           {test: "TestDoctorNamesFaultsOfTheStore", row: "peer with another address and MAC"},
	"etcd wiped, config written again":                                     {test: "TestDoctorNamesFaultsOfTheStore", row: "etcd wiped"},
	"entry changed by hand after a start without etcd":                     {test: "TestDoctorNamesFaultsOfTheStore", row: "entry changed, etcd away"},
	"device lost while etcd and daemon are away":                           {test: "TestDoctorNamesFaultsOfTheStore", row: "device lost, etcd away"},
	"device deleted while etcd is away":                                    {test: "TestDoctorNamesFaultsOfTheStore", row: "device lost, etcd away"},
	"rebooted while etcd is away":                                          {test: "TestDoctorNamesFaultsOfTheStore", row: "started without etcd"},
	"peer with another address, MAC and holder":                            {test: "TestDoctorNamesFaultsOfTheStore", row: "peer with another address and MAC"},
	"route and FDB entry deleted while etcd is away":                       {test: "TestDoctorNamesFaultsOfTheStore", row: "route and FDB entry deleted, etcd away"},
	"daemon stopped for longer than its lease lives":                       {test: "TestDoctorNamesFaultsOfTheStore", row: "own lease revoked"},

	"link to etcd cut for 3 s, a peer comes meanwhile":       {test: "TestDoctorNamesFaultsOfTheStore", row: "link to etcd cut"},
	"underlay: address changed, the new before the old":      {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "address changed"},
	"underlay: address changed back, the old before the new": {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "address changed"},
	"underlay: address changed, the old before the new":      {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "address changed"},
	"underlay: address changed back, the new before the old": {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "address changed"},
	"underlay: interface made again at another address, MTU": {test: "TestDoctorNamesFaultsOfTheUnderlay", row: "address changed"},
}

// TestEachFaultOfTheSuiteIsHeldToTheDoctor: whoever puts a fault into the suite says
// what the doctor says of it, or why it says nothing.
func TestEachFaultOfTheSuiteIsHeldToTheDoctor(t *testing.T) {
	known := map[string]bool{"restarts of the daemon, one in ten with etcd": true} // It is one of its own.
	for _, f := range directFaults {
		known[f.name] = true
	}
	for _, f := range underlayFaults {
		known[f.name] = true
	}
	for _, f := range underlayStays {
		known[f.name] = true
	}
	for _, f := range storeFaults {
		known[f.name] = true
	}
	rows := map[string][]string{
		"TestDoctorNamesFaultsOfDirectRoutes": namesOf(directIlls()), "TestDoctorNamesFaultsOfTheUnderlay": namesOf(underlayIlls()),
		"TestDoctorNamesFaultsOfTheStore": namesOf(storeIlls()), "TestDoctorNamesFaults": {"own record deleted"},
	}
	for name := range known {
		a, ok := suiteNamed[name]
		switch {
		case !ok:
			t.Errorf("it is not said what the doctor says of the fault %q", name)
		case a.why == "" && !slices.Contains(rows[a.test], a.row):
			t.Errorf("the fault %q: %s has no %q", name, a.test, a.row)
		}
	}
	for name := range suiteNamed {
		if !known[name] {
			t.Errorf("the suite has no fault %q any more", name)
		}
	}
}

func namesOf(ills []ill) (names []string) {
	for _, i := range ills {
		names = append(names, i.name)
	}
	return names
}

// areNamed does one thing after another to a host, and each is named by its check.
func areNamed(t *testing.T, l *Lab, h *Host, ills []ill) {
	t.Helper()
	for _, i := range ills {
		if err := i.act(t, l, h); err != nil {
			t.Fatalf("%s: %v", i.name, err)
		}
		if d := diagnose(t, h, append(i.args, "--check="+i.check)...); !d.names(i.check, i.least, i.texts...) {
			t.Errorf("%s: the check %q does not name it with %q:\n%s", i.name, i.check, i.texts, d.text())
		}
	}
}

// changesLink changes a host's interface on the underlay.
func changesLink(change func(*netlink.Handle, netlink.Link) error) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, _ *Lab, h *Host) error {
		return h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			return change(n, link)
		})
	}
}

// changesPort changes the other end of it.
func changesPort(change func(*netlink.Handle, netlink.Link) error) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, l *Lab, h *Host) error {
		return l.Underlay().netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(h.Name)
			if err != nil {
				return err
			}
			return change(n, link)
		})
	}
}

func flushIPv4(n *netlink.Handle, link netlink.Link) error {
	addrs, err := n.AddrList(link, unix.AF_INET)
	for _, a := range addrs {
		err = errors.Join(err, n.AddrDel(link, &a))
	}
	return err
}

// directIlls are done to a host with direct routes whose daemon is dead, in an order in
// which none hides the next.
func directIlls() []ill {
	deed := func(name string) func(*testing.T, *Lab, *Host) error {
		at := slices.IndexFunc(directFaults, func(f fault) bool { return f.name == name })
		if at < 0 {
			return func(*testing.T, *Lab, *Host) error { return fmt.Errorf("the suite has no %q", name) }
		}
		return directFaults[at].do.act
	}
	return []ill{
		{"direct route given another gateway", deed("direct route given another gateway"), "entries", doctor.Failure, []string{"2 routes are wrong in the kernel: packets to node2 are lost", "wrong, wanted: route 10.5.", "dev eth0"}, nil},
		{"direct route deleted", deed("direct route deleted"), "entries", doctor.Failure, []string{"2 routes are missing in the kernel: packets to node2 are lost", "missing: route ", "dev eth0"}, nil},
		{"device deleted beside direct routes", deed("device deleted beside direct routes"), "device", doctor.Failure, []string{"device ripstop.1 is missing"}, nil},
		{"carrier lost", changesPort((*netlink.Handle).LinkSetDown), "underlay", doctor.Failure, []string{"eth0 is down or has no carrier"}, nil},
		{"IPv4 addresses flushed", func(t *testing.T, l *Lab, h *Host) error {
			return errors.Join(changesPort((*netlink.Handle).LinkSetUp)(t, l, h), h.Namespace.awaitUp(t.Context(), hostInterface), changesLink(flushIPv4)(t, l, h))
		}, "underlay", doctor.Failure, []string{"by IPv4 no packet of the tunnel leaves this host", "the address"}, nil},
		{"interface set down", changesLink((*netlink.Handle).LinkSetDown), "underlay", doctor.Failure, []string{"by IPv6 no packet of the tunnel leaves this host"}, nil},
		{"interface deleted", changesLink((*netlink.Handle).LinkDel), "underlay", doctor.Failure, []string{"no interface has the address"}, nil},
	}
}

func TestDoctorNamesFaultsOfDirectRoutes(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Far: 1, Mode: Dual, Config: configWith(Dual, directRoutes)})
	h := l.Hosts[0]
	allKnow(t, l)
	isWell(t, h, "before")
	kill(t, h)
	areNamed(t, l, h, directIlls())
}

// underlayIlls are done to a host whose daemon is dead, and so does not follow.
func underlayIlls() []ill {
	return []ill{
		{"MTU up", setMTU(underlayMTU), "mtu", doctor.Warning, []string{"device ripstop.1 has MTU 1350, the underlay carries 1450: packets are smaller than they could be", "interface eth0 has MTU 1500"}, nil},
		{"MTU down", setMTU(1350), "mtu", doctor.Failure, []string{"device ripstop.1 has MTU 1350, the underlay carries 1300: larger packets vanish", "interface eth0 has MTU 1350"}, nil},
		{"address changed", renumber(secondSeat, true), "underlay", doctor.Failure, []string{"no interface has the address 10.99.0.1"}, nil},
		{"address gone", func(_ *testing.T, l *Lab, h *Host) error { return seatOf(l, h, secondSeat, false) }, "underlay", doctor.Failure, []string{"no interface has the address 10.99.0.1"}, nil},
	}
}

// TestDoctorNamesFaultsOfTheUnderlay without a daemon, and beside one that stays where
// its address is gone.
func TestDoctorNamesFaultsOfTheUnderlay(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, MTUs: []int{smallerMTU}})
	h, alive := l.Hosts[0], l.Hosts[1]
	allKnow(t, l)
	isWell(t, h, "before")
	kill(t, h)
	areNamed(t, l, h, underlayIlls())
	if err := seatOf(l, alive, alive.seat, false); err != nil {
		t.Fatal(err)
	}
	stays(t, alive)
	if d := diagnose(t, alive); !d.names("underlay", doctor.Failure, "the underlay does not serve: by IPv4") || !d.names("daemon", doctor.Failure, `the condition "underlay" does not hold`) {
		t.Errorf("the address of a node with a daemon is gone: %s", d.text())
	}
}

// storeIlls are done to the store, and to the first host's way there; some have the
// daemon die first, which would heal what follows.
func storeIlls() []ill {
	record := func(t *testing.T, l *Lab, h *Host) (*clientv3.Client, string, *clientv3.GetResponse, error) {
		env, err := h.Env()
		if err != nil {
			return nil, "", nil, err
		}
		store, key := openStore(t, l), Prefix+"/subnets/"+env.Subnets.Key()
		got, err := store.Get(t.Context(), key)
		if err == nil && len(got.Kvs) != 1 {
			err = fmt.Errorf("%s is not there", key)
		}
		return store, key, got, err
	}
	dies := func(h *Host) error {
		err := unix.Kill(h.DaemonPID(), unix.SIGKILL)
		<-h.daemon.done
		return err
	}
	put := func(t *testing.T, l *Lab, key, text string) error {
		_, err := openStore(t, l).Put(t.Context(), Prefix+"/"+key, text)
		return err
	}
	harm := func(h *Host) error {
		file := filepath.Join(h.Dir, "state", "snapshot")
		whole, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(file, whole[:len(whole)/2], 0o600)
	}
	return []ill{
		{"etcd paused", func(_ *testing.T, l *Lab, _ *Host) error { return l.Etcd.Pause() }, "store", doctor.Note, []string{"the store", "nothing answers"}, nil},
		{"link to etcd cut", func(t *testing.T, l *Lab, h *Host) error {
			return errors.Join(l.Etcd.Resume(), l.cutOff(h, true))
		}, "store", doctor.Note, []string{"the store", "etcd"}, nil},
		{"peers are held", func(t *testing.T, l *Lab, h *Host) error {
			if err := l.cutOff(h, false); err != nil {
				return err
			}
			_, err := openStore(t, l).Txn(t.Context()).Then(crowdComes(t, l, h)...).Commit()
			eventually(t, 30*time.Second, "the crowd is held", func() bool { return hasPeers(t, h, crowd+len(l.Hosts)-1, crowd) })
			return err
		}, "entries", doctor.Note, []string{"left over", fmt.Sprintf("%d peers without a record are held for a time of grace (--peer-grace)", crowd)}, nil},
		// From here on the daemon is dead but where it is said.
		{"peer with another address and MAC", func(t *testing.T, l *Lab, h *Host) error {
			for _, leaves := range crowdComes(t, l, h) { // One by one, as any peer does.
				if _, err := openStore(t, l).Do(t.Context(), leaves); err != nil {
					return err
				}
			}
			eventually(t, 30*time.Second, "the crowd is gone", func() bool { return hasPeers(t, h, len(l.Hosts)-1, 0) })
			if err := put(t, l, "subnets/"+ghostKey, ghostRecord(0)); err != nil {
				return err
			}
			eventually(t, 30*time.Second, "the record is known", func() bool { return strings.Contains(strings.Join(mustPicture(t, h), "\n"), "10.5.255.0/24") })
			return errors.Join(dies(h), put(t, l, "subnets/"+ghostKey, ghostRecord(1)))
		}, "entries", doctor.Failure, []string{"2 FDB entries are missing in the kernel: packets to ghost1 are lost", "dst " + ghostAddress(1) + " (of ghost1)"}, nil},
		{"peer left", func(t *testing.T, l *Lab, _ *Host) error {
			_, err := openStore(t, l).Delete(t.Context(), Prefix+"/subnets/"+ghostKey)
			return err
		}, "entries", doctor.Warning, []string{"are left over in the kernel", "dst " + ghostAddress(0), "$ systemctl start ripstopd"}, nil},
		{"own lease revoked", func(t *testing.T, l *Lab, h *Host) error {
			store, _, got, err := record(t, l, h)
			if err == nil {
				_, err = store.Revoke(t.Context(), clientv3.LeaseID(got.Kvs[0].Lease))
			}
			return err
		}, "record", doctor.Failure, []string{`there is no record of the node "node1" in the store`}, nil},
		{"own subnet taken", func(t *testing.T, l *Lab, h *Host) error {
			env, err := h.Env()
			if err != nil {
				return err
			}
			var own subnet.Subnets
			for f, p := range env.Subnets {
				own[f] = p.Masked()
			}
			thief := strings.NewReplacer("crowd9", "thief").Replace(crowdRecord(9))
			return put(t, l, "subnets/"+own.Key(), thief)
		}, "record", doctor.Failure, []string{`there is no record of the node "node1" in the store`}, nil},
		{"etcd wiped", func(t *testing.T, l *Lab, _ *Host) error { return l.Etcd.Wipe(t.Context()) }, "store", doctor.Failure, []string{"there is no network config in the store", "$ ripstop config set"}, nil},
		{"etcd killed", func(t *testing.T, l *Lab, h *Host) error {
			// What was before is there again, and is saved.
			if err := l.SetConfig(t.Context(), UsualConfig(l.Mode())); err != nil {
				return err
			}
			if err := errors.Join(h.StartDaemon(), h.WaitReady(t.Context())); err != nil {
				return err
			}
			everyPairTalks(t, l, talkLimit)
			_, _, err := h.StopDaemon(t.Context(), unix.SIGTERM)
			return errors.Join(err, l.Etcd.Kill())
		}, "store", doctor.Failure, []string{"the store does not answer", "connection refused", "$ etcdctl endpoint health"}, nil},
		{"route and FDB entry deleted, etcd away", func(t *testing.T, l *Lab, h *Host) error {
			return deleteEntries(func(e target) bool { return e.peer && (e.kind == "route" || e.kind == "fdb") })(t, l, h)
		}, "entries", doctor.Failure, []string{"2 FDB entries, 2 routes are missing in the kernel: packets to node2 are lost"}, nil},
		{"entry changed, etcd away", changeEntries(backend.KindNeighbour), "entries", doctor.Failure, []string{"2 neighbours are wrong in the kernel: packets to node2 are lost"}, nil},
		{"device lost, etcd away", toDevices(func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkDel(v) }), "device", doctor.Failure, []string{"device ripstop.1 is missing"}, nil},
		{"started without etcd", func(t *testing.T, _ *Lab, h *Host) error {
			return errors.Join(h.StartDaemon(), h.WaitReady(t.Context()))
		}, "store", doctor.Warning, []string{"the store does not answer: nothing breaks yet"}, nil},
		{"snapshot torn, etcd away", func(t *testing.T, _ *Lab, h *Host) error {
			_, _, err := h.StopDaemon(t.Context(), unix.SIGKILL)
			return errors.Join(err, harm(h), h.StartDaemon())
		}, "store", doctor.Failure, []string{"the store does not answer", "what the daemon has saved cannot be used"}, nil},
	}
}

// crowdComes puts a crowd into the store, waits until a host has its entries, and
// returns what deletes it.
func crowdComes(t *testing.T, l *Lab, h *Host) (deletes []clientv3.Op) {
	t.Helper()
	store := openStore(t, l)
	for n := range crowd {
		key := Prefix + "/subnets/" + crowdKey(200+n)
		if _, err := store.Put(t.Context(), key, crowdRecord(200+n)); err != nil {
			t.Fatal(err)
		}
		deletes = append(deletes, clientv3.OpDelete(key))
	}
	eventually(t, 30*time.Second, "the crowd is known", func() bool { return hasPeers(t, h, crowd+len(l.Hosts)-1, 0) })
	return deletes
}

// allKnow waits until every host has the entries of all others: until then a daemon that
// is killed has less than its peers believe.
func allKnow(t *testing.T, l *Lab) {
	t.Helper()
	for _, h := range l.Hosts {
		eventually(t, 30*time.Second, h.Name+" has all peers", func() bool { return hasPeers(t, h, len(l.Hosts)-1, 0) })
	}
}

// hasPeers tells whether a host's daemon knows so many peers and holds so many, and the
// kernel has a route of each in each family.
func hasPeers(t *testing.T, h *Host, known, held int) bool {
	t.Helper()
	client := status.NewClient(filepath.Join(h.Dir, "run"))
	defer client.Close()
	s, err := client.Status(t.Context())
	routes := strings.Count("\n"+strings.Join(mustPicture(t, h), "\n"), "\nroute ")
	return err == nil && s.Peers.Count == known && s.Peers.Held == held && routes == known*len(h.lab.Families())
}

func TestDoctorNamesFaultsOfTheStore(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	h := l.Hosts[0]
	allKnow(t, l)
	isWell(t, h, "before")
	areNamed(t, l, h, storeIlls())
	// A daemon that can go by nothing waits, and says for what.
	var d diagnosis
	if _, in := timeUntil(30*time.Second, func() bool {
		d = diagnose(t, h, "--check=daemon")
		return d.names("daemon", doctor.Failure, "ripstopd is not ready", "etcd")
	}); !in {
		t.Errorf("a daemon that waits for the store: %s", d.text())
	}
}
