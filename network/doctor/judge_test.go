package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// settings are a host's.
type settings map[string]int

func (s settings) Get(key string) (int, error) {
	v, ok := s[key]
	if !ok {
		return 0, fs.ErrNotExist
	}
	return v, nil
}

func (s settings) Tracking() (host.Tracking, error) { return host.Tracking{}, fs.ErrNotExist }

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func in(d time.Duration) time.Time { return now.Add(d) }

// TestJudgements of what no test can do to a real host, or only at a price, and of the
// borders of each.
func TestJudgements(t *testing.T) {
	cert := func(from, till time.Duration) []Verdict {
		return judgeCertificates([]Certificate{{"etcd", in(from), in(till)}}, now)
	}
	clock := func(behind time.Duration) []Verdict {
		return judgeClock([]Server{{URL: "http://192.0.2.1:2379", Behind: behind, Dated: true}, {URL: "http://192.0.2.2:2379"}})
	}
	conntrack := func(used, most int) []Verdict {
		return judgeConntrack(settings{"netfilter/nf_conntrack_count": used, "netfilter/nf_conntrack_max": most}.Get, host.Tracking{Dropped: 7, Early: 8, NotInserted: 9})
	}
	daemon := func(s *status.Status, err error, ended time.Time, starts ...rundir.Start) []Verdict {
		return judgeDaemon(&Scene{Status: s, StatusErr: err, Ended: ended, At: now, Starts: starts})
	}
	// starts are so many, so far apart, up to one of a time ago; the last may not have ended.
	starts := func(n int, apart, ago time.Duration, ends ...rundir.End) (out []rundir.Start) {
		for i := range n {
			out = append(out, rundir.Start{At: in(time.Duration(i+1-n)*apart - ago)})
			if i < len(ends) {
				out[i].End = ends[i]
			}
		}
		return out
	}
	// loop are starts a quarter of a minute apart, up to a moment ago.
	loop := func(n int) []rundir.Start { return starts(n, 15*time.Second, 15*time.Second) }
	const byHand, unready = rundir.ToldReady, rundir.ToldUnready
	none := errors.New("no ripstopd runs here")
	up := status.Status{Up: true, Ready: true, Daemon: status.Daemon{Started: in(-15 * time.Second), Beat: now}}
	silent := status.Status{Up: true, Ready: true, Probing: status.Probing{Silent: []status.SilentPeer{
		{Node: "worker-7", Layer: "overlay", Since: in(-time.Minute), Asked: 4, Reason: "no answer"}, {Node: "worker-7", Layer: "underlay", Since: in(-time.Minute), Asked: 4, Reason: "no answer"},
		{Node: "worker-9", Layer: "overlay", Since: in(-time.Second), Asked: 2, Reason: "refused"},
	}}}
	cutOff := status.Status{Up: true, Ready: true, Probing: status.Probing{CutOff: in(-90 * time.Second)}}
	// dropped is what the guard dropped of a peer, and of others.
	known, err := subnet.ParseConfig([]byte(`{"Network": "10.5.0.0/16"}`))
	if err != nil {
		t.Fatal(err)
	}
	peer := subnet.Lease{
		Node: "two", Backend: known.Backend.Type, Subnets: subnet.Subnets{netip.MustParsePrefix("10.5.2.0/24")}, Endpoints: subnet.PerFamily[subnet.Endpoint]{{PublicIP: netip.MustParseAddr("192.0.2.2"), VNI: 1, MAC: subnet.MAC{2}}},
	}
	dropped := func(shut []netip.Addr, of ...string) []Verdict {
		c := &Scene{mirror: subnet.NewMirror(known, subnet.Identity{Node: "one"}, func(subnet.Lease) error { return nil })}
		c.mirror.Apply(now, subnet.Change{Whole: true, Leases: []subnet.Lease{peer}})
		r := Rules{There: true, Dropped: 9, Shut: shut}
		for _, a := range of {
			r.Strangers = append(r.Strangers, status.Stranger{Address: netip.MustParseAddr(a), Packets: 3})
		}
		return judgeGuard(c, r)
	}
	links := func(l forwarders) []Verdict {
		return judgeForwarding([]subnet.Family{subnet.V4}, settings{"ipv4/ip_forward": 1}.Get, l)
	}
	const day = 24 * time.Hour
	beat := status.Status{Daemon: status.Daemon{Started: in(-time.Hour), Beat: in(-31 * time.Second)}}
	young := status.Status{Daemon: status.Daemon{Started: in(-2 * time.Second)}, Conditions: []status.Condition{{Name: status.LeaseHeld, Reason: "no lease is held yet"}}}
	old := young
	old.Daemon.Started = in(-time.Hour)
	fought := status.Status{Loop: status.Loop{Problems: []status.Problem{{Entry: "route 10.5.1.0/24", Reason: "process 7 (dhcpcd) undid it 9 times", Fought: true}, {Entry: "route 10.5.2.0/24", Reason: "static", Foreign: true}}}}
	echoless := status.Status{Probing: status.Probing{Port: 8473, Problem: "in use"}}
	device := func(off bool) *backend.State {
		return backend.NewState(backend.Device{Name: "ripstop.1", NoTxChecksum: off})
	}
	v4, v6 := []subnet.Family{subnet.V4}, []subnet.Family{subnet.V6}
	for name, tc := range map[string]struct {
		got  []Verdict
		want Severity
		text string
	}{
		"certificate good":             {cert(-300*day, 65*day), OK, "good for a while"},
		"certificate near its end":     {cert(-351*day, 13*day), Warning, "expires in 13 days"},
		"certificate of a day":         {cert(-12*time.Hour, 12*time.Hour), OK, ""},
		"certificate of a day, ending": {cert(-20*time.Hour, 4*time.Hour), Warning, "expires in 4h0m0s"},
		"certificate expired":          {cert(-2*day, -time.Second), Failure, "has expired"},
		"certificate of the future":    {cert(time.Minute, day), Failure, "not good yet"},
		"clock right":                  {clock(900 * time.Millisecond), OK, "agree"},
		"clock ahead":                  {clock(6 * time.Second), Warning, "6s ahead of"},
		"clock behind":                 {clock(-time.Hour), Warning, "1h0m0s behind"},
		"conntrack":                    {conntrack(79, 100), OK, "79 of 100"},
		"conntrack filling":            {conntrack(80, 100), Warning, "filled to 80 %"},
		"conntrack full":               {conntrack(1000, 1000), Failure, "is full"},
		"conntrack, what to do":        {conntrack(1000, 1000), Failure, "$ sysctl -w net.netfilter.nf_conntrack_max=2000"},
		"conntrack, what was dropped":  {conntrack(800, 1000), Warning, "7 packets dropped, 8 connections pushed out for new ones, 9 not entered"},
		"conntrack, dropped before":    {conntrack(1, 1000), OK, "7 packets dropped"},
		"daemon that ends and ends":    {daemon(nil, none, in(-3*time.Second), loop(9)...), Failure, "started 9 times within 3 minutes"},
		"daemon that ends now and now": {daemon(&up, nil, time.Time{}, loop(4)...), Warning, "started 4 times within 2 minutes"},
		"daemon that ended thrice":     {daemon(nil, none, in(-3*time.Second), loop(3)...), Note, "stopped 3s ago"},
		"daemon that ended long ago":   {daemon(&up, nil, time.Time{}, append(starts(3, time.Minute, 12*time.Minute), loop(1)...)...), OK, "is ready"},
		"daemon, put off by a kubelet": {daemon(nil, none, in(-3*time.Minute), starts(4, 5*time.Minute, 4*time.Minute)...), Failure, "started 4 times within 20 minutes"},
		"daemon, at the border":        {daemon(nil, none, in(-3*time.Second), starts(4, startsGap, startsGap)...), Failure, "started 4 times within 25 minutes"},
		"daemon, beyond it":            {daemon(nil, none, in(-3*time.Second), starts(4, startsGap+time.Second, 0)...), Note, "stopped 3s ago"},
		"daemon that stays up now":     {daemon(&up, nil, time.Time{}, starts(9, time.Second, startsGap+time.Second)...), OK, "is ready"},
		"daemon, after a good while":   {daemon(&up, nil, time.Time{}, append(starts(9, time.Second, time.Hour), starts(4, time.Minute, 0)...)...), Warning, "started 4 times within 4 minutes"},
		"daemon, in a time to come":    {daemon(&up, nil, time.Time{}, append(starts(9, time.Second, -time.Hour), loop(3)...)...), OK, "is ready"},
		"daemon, restarted in a loop":  {daemon(&up, nil, time.Time{}, starts(5, time.Minute, 0, "", "", byHand)...), Warning, "started 4 times within 5 minutes"},
		"daemon, restarted by hand":    {daemon(&up, nil, time.Time{}, starts(5, time.Minute, 0, byHand, byHand, byHand, byHand)...), OK, "is ready"},
		"daemon, killed as not alive":  {daemon(nil, none, in(-3*time.Second), starts(4, 2*time.Minute, time.Minute, unready, unready, unready, unready)...), Failure, "told to end 4 times before it was ready"},
		"daemon with silent peers":     {daemon(&silent, nil, time.Time{}), Note, "2 peers have not answered this node's probing when last asked: worker-7, worker-9"},
		"daemon, how they are silent":  {daemon(&silent, nil, time.Time{}), Note, "worker-7 does not answer by the underlay for 1m0s, asked 4 times: no answer"},
		"daemon that is cut off":       {daemon(&cutOff, nil, time.Time{}), Warning, "nearly no peer has answered this node for 1m30s"},
		"a bridge does not forward":    {links(forwarders{shut: []string{"cni0", "eth9"}, pods: []string{"cni0"}, underlay: "eth0"}), Failure, "cni0 does not forward IPv4: what pods of this node send"},
		"nor do pods' own":             {links(forwarders{shut: []string{"v1", "v2"}, pods: []string{"v1", "v2"}}), Failure, "$ sysctl -w net/ipv4/conf/v2/forwarding=1"},
		"the underlay does not":        {links(forwarders{shut: []string{"eth0.5"}, underlay: "eth0.5"}), Warning, "answers from outside"},
		"the underlay, direct":         {links(forwarders{shut: []string{"eth0"}, underlay: "eth0", direct: true}), Failure, "pods of other nodes send directly"},
		"another does not forward":     {links(forwarders{shut: []string{"eth9"}, pods: []string{"cni0"}, underlay: "eth0"}), OK, ""},
		"daemon away":                  {daemon(nil, errors.New("no ripstopd runs here"), time.Time{}), Failure, "does not answer"},
		"daemon stopped a moment ago":  {daemon(nil, errors.New("none"), in(-3*time.Second)), Note, "stopped 3s ago"},
		"daemon stopped a while ago":   {daemon(nil, errors.New("none"), in(-time.Minute)), Failure, "does not answer"},
		"daemon stuck":                 {daemon(&beat, nil, time.Time{}), Failure, "last answered 31s ago"},
		"daemon coming up":             {daemon(&young, nil, time.Time{}), Note, `"lease" does not hold yet`},
		"daemon not ready":             {daemon(&old, nil, time.Time{}), Failure, `"lease" does not hold`},
		"an outside hand":              {daemon(&fought, nil, time.Time{}), Failure, "dhcpcd"},
		"a foreign route":              {daemon(&fought, nil, time.Time{})[1:], Failure, "somebody else's"},
		"echo's port taken":            {daemon(&echoless, nil, time.Time{}), Warning, "8473 cannot be had in use"},
		"kernel good":                  {judgeKernel(nil, nil, "6.1.0"), OK, "6.1.0"},
		"kernel old":                   {judgeKernel(fmt.Errorf("%w: nexthop objects", backend.ErrUnsupported), nil, "4.19.0"), Failure, "4.19.0"},
		"kernel without VXLAN":         {judgeKernel(nil, fmt.Errorf("%w: VXLAN devices", backend.ErrUnsupported), "6.1.0"), Failure, "modprobe vxlan"},
		"checksums on an old kernel":   {judgeChecksum(device(false), host.TxChecksumAuto, "5.4.0"), Failure, "gets them wrong"},
		"checksums off, old kernel":    {judgeChecksum(device(true), host.TxChecksumAuto, "5.4.0"), OK, ""},
		"checksums off, new kernel":    {judgeChecksum(device(true), host.TxChecksumAuto, "6.1.0"), Note, "in software"},
		"segments":                     {judgeSegments([]backend.Segments{{Name: "eth0", GSO: 65536, GRO: 65536}}), OK, ""},
		"big segments of IPv4":         {judgeSegments([]backend.Segments{{Name: "eth0", GSO: 65536, GROv4: 65537}}), Warning, "gro_ipv4_max_size 65536"},
		"forwarded link by link":       {judgeForwarding(v4, settings{"ipv4/ip_forward": 0}.Get, forwarders{}), OK, ""},
		"one link does not forward":    {judgeForwarding(v4, settings{"ipv4/ip_forward": 0}.Get, forwarders{shut: []string{"eth1"}}), Failure, "eth1"},
		"no IPv6":                      {judgeForwarding(v6, settings{}.Get, forwarders{}), Failure, "does not forward IPv6"},
		"rp_filter of all":             {judgePathFilter("ripstop.1", "", settings{"ipv4/conf/all/rp_filter": 1, "ipv4/conf/ripstop.1/rp_filter": 2}.Get), OK, ""},
		"rp_filter on a direct path":   {judgePathFilter("ripstop.1", "eth0", settings{"ipv4/conf/all/rp_filter": 1}.Get)[1:], Warning, "strict on eth0"},
		"advertised route, heard":      {judgeAdvertisements([]string{"eth0"}, "eth0", true, settings{"ipv6/conf/all/forwarding": 1, "ipv6/conf/eth0/accept_ra": 2}.Get), OK, ""},
		"advertised route, not heard":  {judgeAdvertisements([]string{"eth0"}, "eth1", true, settings{"ipv6/conf/all/forwarding": 1, "ipv6/conf/eth0/accept_ra": 1}.Get), Warning, "runs out"},
		"foreign rules not followed":   {judgeForeignRules([]status.Rule{{Table: "legacy ip filter", Chain: "FORWARD", Rule: "3 rules", Mend: "iptables-legacy -S FORWARD"}}), Warning, "may drop"},
		"nftables missing":             {judgeFirewall(&Scene{}, Filtered{Guard: true, Port: 8472}, Rules{Lacking: true}), Warning, "no nftables: the tunnel takes packets from anybody"},
		"nftables missing, unwanted":   {judgeFirewall(&Scene{}, Filtered{Port: 8472}, Rules{Lacking: true}), OK, "none of its rules is wanted"},
		"table missing":                {judgeFirewall(&Scene{}, Filtered{Guard: true, Masquerade: true, Port: 8472}, Rules{}), Warning, "missing: nothing is masqueraded, the tunnel takes packets from anybody, and the tunnel's packets fill"},
		"table missing, no guard":      {judgeFirewall(&Scene{}, Filtered{Masquerade: true, Port: 8472}, Rules{}), Warning, "missing: nothing is masqueraded, and the tunnel's packets fill the table of connections"},
		"table missing, neither":       {judgeFirewall(&Scene{}, Filtered{Port: 8472}, Rules{}), Warning, "missing: the tunnel's packets fill the table of connections"},
		"table missing, no tunnel":     {judgeFirewall(&Scene{}, Filtered{Guard: true, Masquerade: true}, Rules{}), Warning, "missing: nothing is masqueraded "},
		"peers shut out":               {judgeFirewall(&Scene{}, Filtered{Guard: true}, Rules{There: true, ShutAll: 12}), Failure, "12 peers have sent"},
		"dropped long ago":             {judgeGuard(&Scene{}, Rules{Dropped: 3}), OK, "none lately"},
		"dropped before it was known":  {dropped(nil, "192.0.2.2"), OK, "of peers that it lets in by now"},
		"dropped of a peer, and more":  {dropped(nil, "192.0.2.2", "192.0.2.9"), Warning, "from 1 address of no peer 192.0.2.9: 3 packets"},
		"dropped of a peer shut out":   {dropped([]netip.Addr{netip.MustParseAddr("192.0.2.2")}, "192.0.2.2"), Warning, "192.0.2.2: 3 packets"},
	} {
		if name == "rp_filter of all" {
			// The larger holds, so 2 on the device does whatever the host has.
			if len(tc.got) != 1 {
				t.Errorf("%s: %v", name, tc.got)
				continue
			}
		}
		if len(tc.got) == 0 {
			t.Errorf("%s: no verdict", name)
			continue
		}
		v := tc.got[0]
		text := v.Summary + " " + strings.Join(v.Evidence, " ") + " " + strings.Join(v.Remedy, " ")
		if v.Severity != tc.want || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %s: %s; want %s with %q", name, v.Severity, text, tc.want, tc.text)
		}
		if v.Severity >= Warning && len(v.Remedy) == 0 {
			t.Errorf("%s: no remedy", name)
		}
	}
	for name, got := range map[string][]Verdict{
		"no certificate": judgeCertificates(nil, now), "no time told": judgeClock([]Server{{URL: "x"}}), "no conntrack": judgeConntrack(settings{}.Get, host.Tracking{Dropped: 1}),
	} {
		if len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestRefusedStore: who is refused is told so, whatever the daemon has.
func TestStoreJudgements(t *testing.T) {
	current := &status.Status{Store: status.Store{State: status.Current}, Lease: status.Lease{Held: true}}
	stale := &status.Status{Store: status.Store{State: status.Stale}, Lease: status.Lease{Held: true}}
	away := errors.New("etcd is away")
	// changed is a node that goes on with vxlan's defaults while the store has another backend.
	changed := func(backend string) *Scene {
		text := []byte(`{"Network": "10.5.0.0/16"}`)
		c := &Scene{
			Node: "one", Saved: &Saved{Node: "one", Config: text}, Status: &status.Status{Store: status.Store{Config: "was changed"}},
			Listing: &subnet.Listing{Config: []byte(`{"Network": "10.5.0.0/16", "Backend": ` + backend + `}`)},
		}
		c.readConfig()
		return c
	}
	refused := fmt.Errorf("%w: wrong user or password", subnet.ErrRefused)
	sound := &subnet.Listing{Revision: 7, Epoch: "a", Config: []byte(`{"Network": "10.5.0.0/16"}`)}
	other := &status.Status{Store: status.Store{State: status.Current, Epoch: "b"}}
	for name, tc := range map[string]struct {
		scene   *Scene
		servers []Server
		want    Severity
		text    string
	}{
		"away, and no daemon":         {&Scene{StoreErr: away}, nil, Failure, "does not answer"},
		"away, and the daemon stands": {&Scene{StoreErr: away, Status: stale}, nil, Warning, "nothing breaks yet"},
		"read by the daemon alone":    {&Scene{StoreErr: away, Status: current}, nil, Note, "--etcd-"},
		"read from its namespace":     {&Scene{StoreErr: away, Status: current, Elsewhere: 7}, nil, Note, "network namespace alone"},
		"away, where none was named":  {&Scene{StoreErr: away}, nil, Failure, "give --etcd-endpoints"},
		"away, and nothing saved":     {&Scene{StoreErr: away, SavedErr: errors.New("torn")}, nil, Failure, "saved cannot be used: torn"},
		"refused":                     {&Scene{StoreErr: refused, Status: current}, nil, Failure, "refuses"},
		"well":                        {&Scene{Listing: sound}, nil, OK, "revision 7"},
		"one server away":             {&Scene{Listing: sound}, []Server{{URL: "http://192.0.2.3:2379", Problem: "connection refused"}}, Warning, "192.0.2.3"},
		"no config":                   {&Scene{Listing: &subnet.Listing{}}, nil, Failure, "no network config"},
		"another store":               {&Scene{Listing: sound, Status: other}, nil, Warning, "not the one that the daemon follows"},
		"no config, of an etcd elsewhere": {&Scene{Listing: &subnet.Listing{}, Setup: Setup{StoreFlags: []string{"--etcd-endpoints=http://192.0.2.1:2379", "--etcd-cafile=/etc/a b.crt"}}}, nil, Failure,
			`$ ripstop config set '{"Network": "10.5.0.0/16"}' --etcd-endpoints=http://192.0.2.1:2379 '--etcd-cafile=/etc/a b.crt'`},
		"broken config, of an etcd elsewhere": {&Scene{Listing: &subnet.Listing{Config: []byte("{")}, Setup: Setup{StoreFlags: []string{"--etcd-prefix=/x"}}}, nil, Failure,
			"$ ripstop config get --etcd-prefix=/x > net.json"},
		"another config":              {changed(`{"Type": "vxlan", "DirectRouting": true}`), nil, Note, "one by one"},
		"another config, on the wire": {changed(`{"Type": "vxlan", "VNI": 7}`), nil, Note, "Restart all daemons at once"},
	} {
		got := judgeStore(tc.scene, tc.servers)
		if len(got) != 1 || got[0].Severity != tc.want || !strings.Contains(fmt.Sprint(got[0]), tc.text) {
			t.Errorf("%s: %v, want %s with %q", name, got, tc.want, tc.text)
		}
	}
}

// TestRemedyIsOfWhatIsBroken: who named an etcd is not asked for one, and a daemon that hangs
// is not started, by which systemd would do nothing.
func TestRemedyIsOfWhatIsBroken(t *testing.T) {
	named := &Scene{StoreErr: errors.New("etcd is away"), Setup: Setup{StoreFlags: []string{"--etcd-endpoints=http://192.0.2.1:2379"}}}
	if got := fmt.Sprint(judgeStore(named, nil)); strings.Contains(got, "give --etcd-endpoints") {
		t.Error(got)
	}
	hangs := &Scene{At: now, StatusErr: errors.New("does not answer"), Hangs: true}
	for _, got := range []string{fmt.Sprint(judgeDaemon(hangs)), fmt.Sprint(judgeRecord(hangs)), fmt.Sprint(heals(hangs))} {
		if !strings.Contains(got, "$ systemctl restart ripstopd") || strings.Contains(got, "systemctl start") {
			t.Error(got)
		}
	}
}

// servers is a store of which nothing but its servers can be seen.
type servers []Server

func (servers) List(context.Context) (subnet.Listing, error) {
	return subnet.Listing{}, errors.New("refused")
}
func (servers) Alive(context.Context, []string) (map[string]bool, error) {
	return nil, errors.New("refused")
}
func (s servers) Servers(context.Context) []Server { return s }

// TestClockOfAStoreThatIsNotRead: that clocks agree is said of a store that is read
// alone; one that is wrong is told all the same.
func TestClockOfAStoreThatIsNotRead(t *testing.T) {
	for name, tc := range map[string]struct {
		err    error
		behind time.Duration
		want   []Severity
	}{
		"read":               {nil, 0, []Severity{OK}},
		"not read":           {errors.New("refused"), 0, nil},
		"not read and wrong": {errors.New("refused"), time.Minute, []Severity{Warning}},
	} {
		got, err := checkClock(t.Context(), &Scene{StoreErr: tc.err}, Sources{Store: servers{{URL: "x", Dated: true, Behind: tc.behind}}})
		var have []Severity
		for _, v := range got {
			have = append(have, v.Severity)
		}
		if err != nil || !slices.Equal(have, tc.want) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}

// TestSubnetFileOfANodeThatWaits: a daemon that has no lease yet is not blamed for a file
// that it cannot write.
func TestSubnetFileOfANodeThatWaits(t *testing.T) {
	for name, tc := range map[string]struct {
		status *status.Status
		waits  bool
	}{
		"no daemon": {nil, false},
		"starting":  {&status.Status{Conditions: []status.Condition{{Name: status.Started}, {Name: status.LeaseHeld}}}, true},
		"no lease":  {&status.Status{Conditions: []status.Condition{{Name: status.Started, OK: true}, {Name: status.LeaseHeld}}}, true},
		"up":        {&status.Status{Conditions: []status.Condition{{Name: status.Started, OK: true}, {Name: status.LeaseHeld, OK: true}, {Name: status.SubnetFile}}}, false},
	} {
		got := judgeSubnetFile(&Scene{Status: tc.status}, envfile.Env{}, errNoFile)
		if len(got) != 1 || got[0].Severity != Failure || strings.Contains(fmt.Sprint(got[0].Remedy), "once the node has a lease") != tc.waits {
			t.Errorf("%s: %v", name, got)
		}
	}
}
