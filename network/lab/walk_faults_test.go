package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// walkFault is one fault. What it returns, if anything, mends it as an operator
// or init would; the rest is for the daemon to heal.
type walkFault struct {
	name string
	// on names what it leaves broken until it is mended.
	on func(h *Host) []string
	// moves says whose overlay it may change in the kernel.
	moves walkReach
	// bars keeps another fault out of the same burst.
	bars string
	do   walkDeed
}

type walkDeed func(w *walk, h *Host, r *rand.Rand) (mend func() error, err error)

// walkReach tells hosts apart by what may happen to their overlays.
type walkReach int

// The reaches.
const (
	noOverlay walkReach = iota
	ownOverlay
	allOverlays
	ownDirect // Its direct routes, if it has such.
)

func onDaemon(h *Host) []string { return []string{h.Name} }
func onEtcd(*Host) []string     { return []string{"etcd"} }
func onBoth(h *Host) []string   { return []string{h.Name, "etcd"} }
func onLink(h *Host) []string   { return []string{h.Name + "'s link"} }
func onWay(h *Host) []string    { return []string{h.Name + "'s way to etcd"} }
func onNothing(*Host) []string  { return nil }

// walkFaults are drawn from with equal chances. What the kernel announces in a
// way of its own has a fault of its own, that nothing else betrays: a change of
// a device makes a daemon read everything.
var walkFaults = []walkFault{
	{"daemon killed", onDaemon, noOverlay, "", endDaemon(unix.SIGKILL)},
	{"daemon terminated", onDaemon, noOverlay, "", endDaemon(unix.SIGTERM)},
	{"daemon stopped", onDaemon, noOverlay, "", stopDaemon},

	{"etcd killed", onEtcd, noOverlay, "", killEtcd},
	{"etcd paused", onEtcd, noOverlay, "", func(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
		return w.lab.Etcd.Resume, w.lab.Etcd.Pause()
	}},
	{"etcd compacted", onEtcd, noOverlay, "", func(w *walk, _ *Host, _ *rand.Rand) (func() error, error) { return nil, w.compact() }},
	// A peer whose record goes with the store is held for minutes.
	{"etcd wiped", onEtcd, noOverlay, "ghost gone", wipeEtcd},
	{"ghost gone", onEtcd, allOverlays, "etcd wiped", func(w *walk, _ *Host, _ *rand.Rand) (func() error, error) { return nil, w.setGhost("") }},
	{"ghost written", onEtcd, allOverlays, "", func(w *walk, _ *Host, r *rand.Rand) (func() error, error) { return nil, w.setGhost(newGhost(r)) }},
	{"ghost broken", onEtcd, allOverlays, "ghost gone", breakGhost},
	{"record deleted", onEtcd, allOverlays, "", func(w *walk, h *Host, _ *rand.Rand) (func() error, error) {
		return nil, w.ask(func(ctx context.Context) error {
			_, err := w.store.Delete(ctx, Prefix+"/subnets/"+w.subnets[h].Key())
			return err
		})
	}},
	{"cut off from etcd", onWay, noOverlay, "", func(w *walk, h *Host, _ *rand.Rand) (func() error, error) {
		return func() error { return w.lab.cutOff(h, false) }, w.lab.cutOff(h, true)
	}},
	{"records changed and compacted behind its back", onBoth, allOverlays, "", changeBehindItsBack},

	{"FDB entries deleted", onNothing, ownOverlay, "", deleteKinds(backend.KindFDB)},
	{"neighbours deleted", onNothing, ownOverlay, "", deleteKinds(backend.KindNeighbour)},
	{"nexthops deleted", onNothing, ownOverlay, "", deleteKinds(backend.KindNexthop)},
	{"routes deleted", onNothing, ownOverlay, "", deleteKinds(backend.KindRoute)},
	{"addresses deleted", onNothing, ownOverlay, "", deleteKinds(backend.KindAddress)},
	{"entries deleted", onNothing, ownOverlay, "",
		deleteKinds(backend.KindAddress, backend.KindFDB, backend.KindNeighbour, backend.KindNexthop, backend.KindRoute)},
	{"FDB entries led elsewhere", onNothing, ownOverlay, "", changeKind(backend.KindFDB, fdbElsewhere)},
	{"neighbours given another MAC", onNothing, ownOverlay, "", changeKind(backend.KindNeighbour, neighbourElsewhere)},
	{"routes given an MTU", onNothing, ownOverlay, "", changeKind(backend.KindRoute, routeWithMTU)},
	{"direct routes led elsewhere", onNothing, ownDirect, "", changeKind(backend.KindRoute, routeElsewhere)},
	{"FDB entry added", onNothing, ownOverlay, "", addStrange(backend.KindFDB)},
	{"neighbour added", onNothing, ownOverlay, "", addStrange(backend.KindNeighbour)},
	{"nexthop added", onNothing, ownOverlay, "", addStrange(backend.KindNexthop)},
	{"route added", onNothing, ownOverlay, "", addStrange(backend.KindRoute)},
	{"address added", onNothing, ownOverlay, "", addStrange(backend.KindAddress)},
	{"entries deleted, which is not announced", onDaemon, ownOverlay, "", deleteUnannounced},

	{"device down", onNothing, ownOverlay, "", toDevice((*netlink.Handle).LinkSetDown)},
	{"device down and up", onNothing, ownOverlay, "", toDevice(func(n *netlink.Handle, l netlink.Link) error {
		return errors.Join(n.LinkSetDown(l), n.LinkSetUp(l))
	})},
	{"device's carrier lost", onNothing, ownOverlay, "", deviceCarrier(true)},
	{"device's carrier lost and back", onNothing, ownOverlay, "", deviceCarrier(true, false)},
	{"device with another MTU", onNothing, ownOverlay, "", toDevice(func(n *netlink.Handle, l netlink.Link) error { return n.LinkSetMTU(l, 1300) })},
	{"device with an MTU too small for IPv6", onNothing, ownOverlay, "", toDevice(func(n *netlink.Handle, l netlink.Link) error { return n.LinkSetMTU(l, 1000) })},
	{"device with another MAC", onNothing, ownOverlay, "", toDevice(func(n *netlink.Handle, l netlink.Link) error {
		return n.LinkSetHardwareAddr(l, []byte{2, 1, 2, 3, 4, 5})
	})},
	{"device with another local address", onNothing, ownOverlay, "", changeKind(backend.KindDevice, deviceWithLocal)},
	{"device deleted", onNothing, ownOverlay, "", toDevice((*netlink.Handle).LinkDel)},
	{"device made again otherwise", onNothing, ownOverlay, "", remakeDevice},
	{"carrier lost", onLink, noOverlay, "", loseUplink},
	{"underlay's interface down and up", onLink, ownDirect, "", toUnderlay(flapUnderlay)},
	{"underlay's interface bounced with its addresses", onLink, ownDirect, "", toUnderlay(bounceUnderlay)},
	{"underlay's interface made again", onLink, ownDirect, "", toUnderlay(remakeUnderlay)},
	{"underlay's IPv4 addresses flushed and given back", onLink, ownDirect, "", toUnderlay(flushUnderlay)},

	{"rules flushed", onNothing, noOverlay, "", harmGuard(flushRuleset)},
	{"guard deleted", onNothing, noOverlay, "", harmGuard(deleteGuard)},
	{"guard's rule deleted", onNothing, noOverlay, "", harmGuard(deleteGuardRule)},
	{"peers taken out of the guard", onNothing, noOverlay, "", harmGuard(keepOutPeers)},
	{"stranger put into the guard", onNothing, noOverlay, "", harmGuard(letInStranger)},
}

func endDaemon(sig unix.Signal) walkDeed {
	return func(w *walk, h *Host, _ *rand.Rand) (func() error, error) {
		_, _, err := h.StopDaemon(w.t.Context(), sig)
		return h.StartDaemon, err
	}
}

func stopDaemon(_ *walk, h *Host, _ *rand.Rand) (func() error, error) {
	pid := h.DaemonPID()
	return func() error { return goOn(pid) }, standStill(pid)
}

func killEtcd(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
	return func() error { return w.lab.Etcd.Restart(w.t.Context()) }, w.lab.Etcd.Kill()
}

func (w *walk) compact() error {
	return w.ask(func(ctx context.Context) error {
		now, err := w.store.Get(ctx, Prefix)
		if err == nil {
			_, err = w.store.Compact(ctx, now.Header.Revision)
		}
		if err != nil && strings.Contains(err.Error(), "has been compacted") {
			return nil
		}
		return err
	})
}

func wipeEtcd(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
	if err := w.lab.Etcd.Wipe(w.t.Context()); err != nil {
		return nil, err
	}
	err := w.ask(func(ctx context.Context) error {
		_, err := w.store.Put(ctx, Prefix+"/config", w.lab.opts.Config)
		return err
	})
	if err == nil {
		err = w.setPulse()
	}
	switch {
	case err != nil:
	case w.ghost != "": // As any peer, it claims its subnet again.
		err = w.setGhost(w.ghost)
	case time.Since(w.wentAt) < snapshotAge:
		// A snapshot may still tell of it, and what that has and the store has
		// not is held.
		w.move(w.lab.Hosts...)
		err = w.setGhost(w.gone)
	}
	return nil, err
}

// snapshotAge bounds the age of a daemon's snapshot, which it writes every 10 s.
const snapshotAge = 15 * time.Second

// ghostKey is that of a peer that is in the store alone: its record comes,
// changes and goes as the walk likes. No node has its subnets.
const ghostKey = "10.5.255.0-24&fd00:10:5:ffff::-64"

// brokenRecord cannot be read.
const brokenRecord = "{"

// newGhost draws a record of the ghost's: another may hold its subnet, it may be
// at another address, have another MAC.
func newGhost(r *rand.Rand) string { return ghostOf(r.IntN(4), r.IntN(4), r.IntN(2)) }

// ghostRecord is the n-th that has nothing in common with another.
func ghostRecord(n int) string { return ghostOf(n, n, n) }

func ghostOf(address, mac, holder int) string {
	return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":"fd99::%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:67:68:6f:00:0%d"},`+
		`"BackendV6Data":{"VNI":1,"VtepMAC":"02:67:68:6f:06:0%d"},"Node":"ghost%d"}`, ghostAddress(address), 200+address, mac, mac, holder)
}

func ghostAddress(n int) string { return fmt.Sprintf("10.99.0.%d", 200+n) }

// ghostGrace is longer than the guard heeds an address that a peer has moved away from,
// from when a daemon that was away hears of it.
const ghostGrace = 20 * time.Second

// pulseKey is that of another such peer, which is always there and is held here and
// there in turns after each burst, by another each time, so that nobody heeds where it
// was: a host that shows where it is has heard of all that was written before.
const pulseKey = "10.5.254.0-24&fd00:10:5:fffe::-64"

// pulseMACs are the MACs of the pulse, by family.
var pulseMACs = [2]net.HardwareAddr{{2, 'p', 'u', 'l', 's', 4}, {2, 'p', 'u', 'l', 's', 6}}

// ofPulse is what announcements of its entries have: a MAC, or its subnet.
var ofPulse = [][]byte{pulseMACs[0], pulseMACs[1], {10, 5, 254, 0}, {0xfd, 0, 0, 0x10, 0, 5, 0xff, 0xfe}}

func (w *walk) setPulse() error {
	record := fmt.Sprintf(`{"PublicIP":"10.99.0.%d","PublicIPv6":"fd99::%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},`+
		`"BackendV6Data":{"VNI":1,"VtepMAC":%q},"Node":"pulse%d"}`, 210+w.pulse, 210+w.pulse, pulseMACs[0], pulseMACs[1], w.pulse)
	return w.ask(func(ctx context.Context) error {
		_, err := w.store.Put(ctx, Prefix+"/subnets/"+pulseKey, record)
		return err
	})
}

// setGhost writes a record of the ghost's, or deletes it where there is none.
func (w *walk) setGhost(record string) error {
	if record == "" && w.ghost != "" && w.ghost != brokenRecord {
		w.gone, w.wentAt = w.ghost, time.Now()
	}
	w.leave(w.ghost)
	w.ghost = record
	return w.ask(func(ctx context.Context) error {
		if record == "" {
			_, err := w.store.Delete(ctx, Prefix+"/subnets/"+ghostKey)
			return err
		}
		_, err := w.store.Put(ctx, Prefix+"/subnets/"+ghostKey, record)
		return err
	})
}

// leave notes where the ghost was by a record of its.
func (w *walk) leave(record string) {
	if was, err := readWalkRecord(ghostKey, []byte(record)); err == nil {
		for _, e := range was.ends {
			w.left[e.public] = time.Now().Add(ghostGrace)
		}
	}
}

// breakGhost makes the record one that cannot be read, until it is mended.
func breakGhost(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
	good := w.ghost
	err := w.setGhost(brokenRecord)
	return func() error { return w.setGhost(good) }, err
}

// changeBehindItsBack has a daemon miss changes that it cannot be told of any
// more: they are compacted when it comes back to a connection that is gone.
func changeBehindItsBack(w *walk, h *Host, r *rand.Rand) (func() error, error) {
	if err := standStill(h.DaemonPID()); err != nil {
		return nil, err
	}
	err := w.lab.Etcd.Kill()
	if err == nil {
		err = w.lab.Etcd.Restart(w.t.Context())
	}
	if err == nil {
		err = w.setGhost(newGhost(r))
	}
	if err == nil {
		err = w.compact()
	}
	return nil, errors.Join(err, goOn(h.DaemonPID()))
}

// deleteKinds deletes one, half or all of a host's entries of some kinds, of one
// family or both, in an order of the random's own.
func deleteKinds(kinds ...backend.Kind) walkDeed {
	return func(w *walk, h *Host, r *rand.Rand) (func() error, error) {
		return nil, harmEntries(w, h, r, func(e backend.Entry, _ subnet.Family) (backend.Op, bool) {
			return backend.Op{Verb: backend.Delete, Entry: e}, slices.Contains(kinds, e.Kind())
		})
	}
}

// deleteUnannounced has the daemon lose announcements, for its socket is full
// when they come (ENOBUFS).
func deleteUnannounced(w *walk, h *Host, r *rand.Rand) (func() error, error) {
	if err := standStill(h.DaemonPID()); err != nil {
		return nil, err
	}
	err := flood(h.Namespace)
	if err == nil {
		_, err = deleteKinds(backend.KindFDB, backend.KindNeighbour, backend.KindNexthop, backend.KindRoute)(w, h, r)
	}
	return nil, errors.Join(err, goOn(h.DaemonPID()))
}

// flood makes more announcements than any socket takes: a route of another's is
// replaced again and again.
func flood(ns *Namespace) error {
	const perBatch, batches = 1000, 200
	var b []byte
	for i := range perBatch {
		kind := []byte{unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT}[i%2]
		b = binary.NativeEndian.AppendUint32(b, unix.SizeofNlMsghdr+unix.SizeofRtMsg+8)
		b = binary.NativeEndian.AppendUint16(b, unix.RTM_NEWROUTE)
		b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
		b = append(b, make([]byte, 8)...)
		b = append(b, unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, 0, kind, 0, 0, 0, 0)
		b = binary.NativeEndian.AppendUint16(b, 8)
		b = binary.NativeEndian.AppendUint16(b, unix.RTA_DST)
		b = append(b, 192, 0, 2, 1)
	}
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20); err != nil {
			return err
		}
		for range batches {
			if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				return err
			}
		}
		return nil
	})
}

// toDevice changes one of a host's VXLAN devices, if it is there.
func toDevice(change func(*netlink.Handle, netlink.Link) error) walkDeed {
	return func(_ *walk, h *Host, r *rand.Rand) (func() error, error) {
		name := vxlan.DeviceName(subnet.Families[r.IntN(2)], vxlanVNI)
		err := h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(name)
			if err != nil {
				return err
			}
			return change(n, link)
		})
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
			return nil, nil
		}
		return nil, err
	}
}

// deviceCarrier takes a device's carrier away, and maybe gives it back.
func deviceCarrier(states ...bool) walkDeed {
	return func(w *walk, h *Host, r *rand.Rand) (func() error, error) {
		return toDevice(func(_ *netlink.Handle, l netlink.Link) error {
			return h.Namespace.Do(func() (err error) {
				for i, off := range states {
					if i > 0 { // The kernel acts on it from a work queue (linkwatch_event).
						time.Sleep(50 * time.Millisecond)
					}
					err = errors.Join(err, protoDown(l.Attrs().Index, off))
				}
				return err
			})
		})(w, h, r)
	}
}

// protoDown is what routing daemons do to the ports of a host that is to be
// passed by. It is for a thread in the device's namespace.
func protoDown(index int, off bool) error {
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	request.AddData(message)
	value := []byte{0}
	if off {
		value[0] = 1
	}
	request.AddData(nl.NewRtAttr(unix.IFLA_PROTO_DOWN, value))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// remakeDevice makes a device again that differs from what it should be.
func remakeDevice(w *walk, h *Host, r *rand.Rand) (func() error, error) {
	return toDevice(func(n *netlink.Handle, l netlink.Link) error {
		was, ok := l.(*netlink.Vxlan)
		if !ok {
			return nil
		}
		lower, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = was.Name
		again := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: was.VxlanId, Port: was.Port, SrcAddr: was.SrcAddr}
		switch r.IntN(6) {
		case 0:
			again.VxlanId = 77
		case 1:
			again.Learning = true
		case 2:
			again.VtepDevIndex = lower.Attrs().Index
		case 3:
			again.TTL = 1
		case 4:
			again.Port = 4789
		case 5:
			again.HardwareAddr = net.HardwareAddr{2, 1, 2, 3, 4, 6}
		}
		if err := errors.Join(n.LinkDel(was), n.LinkAdd(again)); err != nil {
			if errors.Is(err, unix.EEXIST) { // The daemon was faster.
				return nil
			}
			return err
		}
		return n.LinkSetUp(again)
	})(w, h, r)
}

// toUnderlay is a fault of the fault suite that is over when it returns.
func toUnderlay(do func(*testing.T, *Lab, *Host) error) walkDeed {
	return func(w *walk, h *Host, _ *rand.Rand) (func() error, error) { return nil, do(w.t, w.lab, h) }
}

// bounceUnderlay takes the interface down and up at once. With its addresses it
// keeps what else would tell that IPv4 routes went.
func bounceUnderlay(t *testing.T, l *Lab, h *Host) error {
	keep := func(value string) error {
		return h.Namespace.Do(func() error { return setSysctl("ipv6/conf/"+hostInterface+"/keep_addr_on_down", value) })
	}
	if err := keep("1"); err != nil {
		return err
	}
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		if err := n.LinkSetDown(link); err != nil {
			return err
		}
		return configure(n, hostInterface, nil, l.underlay.prefixes(h.at, gatewayNumber))
	})
	return errors.Join(err, keep("0"), h.Namespace.awaitUp(t.Context(), hostInterface))
}

// loseUplink takes the host's link to the underlay away.
func loseUplink(w *walk, h *Host, _ *rand.Rand) (func() error, error) {
	set := func(how func(*netlink.Handle, netlink.Link) error) error {
		return w.lab.Underlay().netlink(func(n *netlink.Handle) error {
			port, err := n.LinkByName(h.Name)
			if err != nil {
				return err
			}
			return how(n, port)
		})
	}
	return func() error { return set((*netlink.Handle).LinkSetUp) }, set((*netlink.Handle).LinkSetDown)
}
