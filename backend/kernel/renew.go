package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// renewalMark makes of a VNI another that is the same on the wire: the kernel takes
// 32 bits of an FDB entry's (vxlan_fdb_parse) and sends 24 (vxlan_vni_field).
const renewalMark = 1 << 24

// renewAround changes a device's local address by change, and has the device's FDB
// entries forget the old one. With the route to its host, an entry keeps the source
// address of the packets that go by it (udp_tunnel6_dst_lookup), until that route
// changes or the entry leads elsewhere (vxlan_fdb_replace). The device's change is
// neither (vxlan_changelink), and packets would go on with a source that the host
// may no longer have and its peers' guards no longer let in.
//
// So the entries are marked before it and unmarked after it, each of which makes
// them forget. They lead to the same host all the while. A mark that stays, as after
// a crash in between, makes an entry odd to Dump.
func (k *Kernel) renewAround(ctx context.Context, l linkMessage, change func() error) error {
	all, err := k.dumpFDB(ctx, l.index)
	if err != nil {
		return fmt.Errorf("dump FDB of %s: %w", l.name, err)
	}
	var ours []backend.FDB
	for _, n := range all {
		// What is otherwise than we make it is replaced anyway.
		if e := n.fdb(l.name); e.Odd == "" && !several(e.MAC) {
			ours = append(ours, e)
		}
	}
	if err := k.replaceFDB(ctx, l.index, ours, l.vxlan.vni|renewalMark); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return k.replaceFDB(ctx, l.index, ours, l.vxlan.vni)
}

// replaceFDB has FDB entries lead where they do by a VNI of their own, or by the
// device's. One that has gone does not come back, and is no error.
func (k *Kernel) replaceFDB(ctx context.Context, index int, entries []backend.FDB, vni uint32) error {
	for left := entries; len(left) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(left), k.batchOps)
		first := k.sock.next(n)
		k.out.reset()
		for i, e := range left[:n] {
			beginFDB(&k.out, unix.RTM_NEWNEIGH, unix.NLM_F_REPLACE, first+uint32(i), e, index)
			k.out.addr(unix.NDA_DST, e.Remote)
			k.out.u32(unix.NDA_VNI, vni)
			k.out.end()
		}
		k.out.ask()
		var refused error
		err := k.sock.batch(ctx, k.out.b, first, n, func(_ int, err error) {
			if !errors.Is(err, unix.ENOENT) {
				refused = err
			}
		})
		if err != nil {
			k.discard()
		}
		if err = errors.Join(err, refused); err != nil {
			return fmt.Errorf("renew FDB entries: %w", err)
		}
		if k.events != nil { // Else many would fill its buffer.
			k.events.drain(k)
		}
		left = left[n:]
	}
	return nil
}
