package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// healed waits until every pair talks and each host is as it should be, and
// says how long after the burst's end that was seen.
func (w *walk) healed() (took time.Duration, err error) {
	if err := w.untilPlanned(w.last); err != nil {
		return 0, err
	}
	took = time.Since(w.last)
	w.pulse = 1 - w.pulse
	if err := errors.Join(w.setPulse(), w.untilPlanned(time.Now())); err != nil {
		return took, fmt.Errorf("what was written afterwards is not heard of: %w", err)
	}
	m, err := w.lab.Matrix(w.t.Context(), *walkLimit)
	if err = errors.Join(err, m.Err()); err != nil {
		return took, err
	}
	if m.Took > firstRound { // Not every pair talked at once.
		took = time.Since(w.last)
	}
	return took, errors.Join(w.asPlanned(), w.unmoved(), w.audited())
}

// untilPlanned waits until all is as planned, not for long after a moment.
func (w *walk) untilPlanned(after time.Time) error {
	for {
		err := w.asPlanned()
		if err == nil {
			return nil
		}
		if time.Since(after) > *walkLimit {
			return fmt.Errorf("not healed within %s: %w", *walkLimit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// listen begins to listen to what the hosts' kernels announce.
func (w *walk) listen() {
	w.ears = map[*Host]*listener{}
	for _, h := range w.lab.Hosts {
		ear, err := startListening(h)
		if err != nil {
			w.t.Fatalf("listen in %s: %v", h.Name, err)
		}
		w.ears[h] = ear
	}
}

// unmoved tells which overlays the burst had no cause to move, and yet did: that
// etcd and daemons go and come is none, nor is a wiped store.
func (w *walk) unmoved() error {
	var errs []error
	for _, h := range w.lab.Hosts {
		ear := w.ears[h]
		if w.moved[h] {
			ear.close()
			continue
		}
		heard := ear.heard(w.t)
		ear.close()
		heard = slices.DeleteFunc(heard, func(a announcement) bool {
			if slices.ContainsFunc(ofPulse, func(part []byte) bool { return bytes.Contains(a.body, part) }) {
				return true
			}
			switch a.kind {
			case unix.RTM_NEWLINK: // The state of a new device is told of late.
				return true
			case unix.RTM_NEWNEIGH: // A neighbour that the kernel learnt.
				return binary.NativeEndian.Uint16(a.body[8:])&unix.NUD_PERMANENT == 0
			}
			return false
		})
		if len(heard) > 0 {
			errs = append(errs, fmt.Errorf("%s: %d changes of an overlay that nobody touched, the first is %s", h.Name, len(heard), heard[0]))
		}
	}
	return errors.Join(errs...)
}

// audited tells of what audits found.
func (w *walk) audited() error {
	var errs []error
	for _, h := range w.lab.Hosts {
		log, err := os.Open(h.LogFile())
		if err != nil {
			return err
		}
		_, err = log.Seek(w.logged[h], io.SeekStart)
		for lines := bufio.NewReader(log); err == nil; {
			var line []byte
			if line, err = lines.ReadBytes('\n'); err != nil {
				break // Half a line is for the next time.
			}
			w.logged[h] += int64(len(line))
			if bytes.Contains(line, []byte("audit found")) {
				errs = append(errs, fmt.Errorf("%s: %s", h.Name, line))
			}
		}
		_ = log.Close()
		if !errors.Is(err, io.EOF) {
			return err
		}
	}
	return errors.Join(errs...)
}

// asPlanned tells how the store's records or the hosts' kernels differ from what
// they should be: each node has the record of its first subnet and no other, and
// each kernel has exactly what a new plan made of these records says, and what
// the records themselves say; and each guard lets in their holders alone.
func (w *walk) asPlanned() error {
	ctx, cancel := context.WithTimeout(w.t.Context(), *walkLimit)
	defer cancel()
	answer, err := w.store.Get(ctx, Prefix+"/", clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	var config []byte
	var leases []subnet.Lease
	var records []walkRecord
	for _, kv := range answer.Kvs {
		key := strings.TrimPrefix(string(kv.Key), Prefix+"/")
		if key == "config" {
			config = kv.Value
		}
		if key, ok := strings.CutPrefix(key, "subnets/"); ok {
			l, err := subnet.ParseRecord(key, kv.Value)
			if err != nil {
				return err
			}
			l.ID, l.Created, l.Modified = kv.Lease, kv.CreateRevision, kv.ModRevision
			leases = append(leases, l)
			record, err := readWalkRecord(key, kv.Value)
			if err != nil {
				return err
			}
			records = append(records, record)
		}
	}
	cfg, err := subnet.ParseConfig(config)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range w.lab.Hosts {
		if err := w.hostAsPlanned(ctx, h, cfg, leases); err != nil {
			errs = append(errs, err)
		} else if want := walkPicture(h, records, w.direct); !looksLike(h, want) {
			errs = append(errs, fmt.Errorf("%s: the kernel differs from the records: %s", h.Name, differs(h, want)))
		} else if err := w.guardAsPlanned(h, records); err != nil {
			errs = append(errs, err)
		}
	}
	want := len(w.lab.Hosts) + 1
	if w.ghost != "" {
		want++
	}
	if len(leases) != want {
		errs = append(errs, fmt.Errorf("the store has %d records, want %d", len(leases), want))
	}
	return errors.Join(errs...)
}

func (w *walk) hostAsPlanned(ctx context.Context, h *Host, cfg subnet.Config, leases []subnet.Lease) error {
	if !h.Running() {
		return fmt.Errorf("%s: ripstopd has ended", h.Name)
	}
	own := slices.IndexFunc(leases, func(l subnet.Lease) bool { return l.Node == h.Name })
	env, err := h.Env()
	switch {
	case err != nil:
		return err
	case env.Subnets != w.subnets[h]:
		return fmt.Errorf("%s: the subnet file has %s, at first it had %s", h.Name, env.Subnets, w.subnets[h])
	case own < 0:
		return fmt.Errorf("%s has no record", h.Name)
	case leases[own].Subnets != w.subnets[h]:
		return fmt.Errorf("%s: the record is of %s, at first it was of %s", h.Name, leases[own].Subnets, w.subnets[h])
	}
	want, err := walkPlan(h, cfg, leases, w.subnets[h])
	if err != nil {
		return err
	}
	k, err := kernel.OpenAt(h.Namespace.file, vxlan.OwnsDevice)
	if err != nil {
		return err
	}
	defer k.Close()
	have, err := k.Dump(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if !have.Equal(want) {
		return fmt.Errorf("%s: the kernel differs from the plan, it lacks %v", h.Name, backend.Diff(have, want))
	}
	return nil
}

// walkPlan is what a host owes for records, planned from nothing.
func walkPlan(h *Host, cfg subnet.Config, leases []subnet.Lease, own subnet.Subnets) (*backend.State, error) {
	opts, err := planners.Parse(cfg.Backend)
	if err != nil {
		return nil, err
	}
	node, id := plan.Self{Node: h.Name, Subnets: own}, subnet.Identity{Node: h.Name}
	for _, f := range cfg.Families() {
		node.Underlay[f] = plan.Underlay{Interface: hostInterface, Addr: h.Address(f), MTU: underlayMTU, OnLink: []netip.Prefix{h.at.prefix(f, h.number).Masked()}}
		id.PublicIP[f] = h.Address(f)
	}
	self := opts.Planner(node)
	mirror := subnet.NewMirror(cfg, id, self.Check)
	mirror.Apply(time.Now(), subnet.Change{Whole: true, Leases: leases})
	entries, err := self.Own()
	if err != nil {
		return nil, err
	}
	for _, l := range mirror.Peers() {
		entries = append(entries, self.Peer(l)...)
	}
	return backend.NewState(entries...), nil
}

// walkRecord is what a picture is made from.
type walkRecord struct {
	node string
	ends [2]walkEnd // By family.
}

type walkEnd struct {
	subnet netip.Prefix
	public netip.Addr
	mac    string
}

// readWalkRecord reads a record, and shares no code with the daemon.
func readWalkRecord(key string, value []byte) (r walkRecord, err error) {
	var fields struct {
		Node                       string
		PublicIP, PublicIPv6       netip.Addr
		BackendData, BackendV6Data struct{ VtepMAC string }
	}
	if err := json.Unmarshal(value, &fields); err != nil {
		return r, err
	}
	r.node = fields.Node
	r.ends = [2]walkEnd{{public: fields.PublicIP, mac: fields.BackendData.VtepMAC}, {public: fields.PublicIPv6, mac: fields.BackendV6Data.VtepMAC}}
	for i, part := range strings.Split(key, "&") {
		at := strings.LastIndex(part, "-")
		if r.ends[i].subnet, err = netip.ParsePrefix(part[:at] + "/" + part[at+1:]); err != nil {
			return r, err
		}
	}
	return r, nil
}

// walkPicture is the picture of a host that the records ask for, drawn without
// the daemon's planner: so that an error of that one's is seen. With direct routes
// whoever is on the host's link is reached by these.
func walkPicture(h *Host, records []walkRecord, direct bool) []string {
	var out []string
	for i, dev := range []string{"ripstop.1", "ripstop-v6.1"} {
		bits, metric := []int{32, 128}[i], []int{0, 1024}[i]
		mtu := 1500 - []int{50, 70}[i]
		for _, r := range records {
			e := r.ends[i]
			base := e.subnet.Addr()
			if r.node == h.Name {
				out = append(out, fmt.Sprintf("device %s vni 1 port 8472 local %s lower 0 learning false mac %s mtu %d up true", dev, e.public, e.mac, mtu),
					fmt.Sprintf("addrgenmode 1 dev %s", dev), fmt.Sprintf("forwarding 1 dev %s", dev), fmt.Sprintf("rp_filter 2 dev %s", dev), fmt.Sprintf("address %s/%d dev %s", base, bits, dev))
				continue
			}
			if link := h.at.prefix(subnet.FamilyOf(base), h.number).Masked(); direct && link.Contains(e.public) {
				out = append(out, fmt.Sprintf("route %s via %s dev %s metric %d table 254 mtu 0", e.subnet, e.public, hostInterface, metric))
				continue
			}
			gateway := base
			if base.Is6() { // fe80:: and the first half of the subnet's, which is a /64.
				half := base.As16()
				gateway = netip.AddrFrom16([16]byte(append([]byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0}, half[:8]...)))
			}
			out = append(out, fmt.Sprintf("fdb %s %s dev %s", e.public, e.mac, dev), fmt.Sprintf("neighbour %s %s dev %s", gateway, e.mac, dev),
				fmt.Sprintf("nexthop via %s dev %s", gateway, dev), fmt.Sprintf("route %s via %s dev %s metric %d table 254 mtu 0", e.subnet, gateway, dev, metric))
		}
	}
	slices.Sort(out)
	return out
}
