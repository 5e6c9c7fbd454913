package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// bareBatch is the number of messages in one send.
const bareBatch = 256

// bareLoader sends batches of messages that were written before the clock runs:
// no program can be faster by much.
type bareLoader struct {
	ns    *lab.Namespace
	index int
	// sock is made for each run; it has no time limit of its own, for the kernel
	// always answers.
	sock int
}

func (b *bareLoader) name() string { return "bare sender" }

// Attributes that golang.org/x/sys/unix lacks.
const attrRouteNexthop = 30 // RTA_NH_ID

// batch is messages one behind another.
type batch struct {
	b     []byte
	start int
	count int
}

func (m *batch) begin(typ, flags uint16, fixed ...byte) {
	m.start = len(m.b)
	m.count++
	m.b = append(m.b, make([]byte, unix.SizeofNlMsghdr)...)
	m.b = append(m.b, fixed...)
	h := m.b[m.start:]
	binary.NativeEndian.PutUint16(h[4:], typ)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], uint32(m.count))
	m.end()
}

func (m *batch) attr(typ uint16, v []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.SizeofNlAttr+len(v)))
	m.b = binary.NativeEndian.AppendUint16(m.b, typ)
	m.b = append(m.b, v...)
	m.b = append(m.b, make([]byte, -len(v)&3)...)
	m.end()
}

func (m *batch) end() { binary.NativeEndian.PutUint32(m.b[m.start:], uint32(len(m.b)-m.start)) }

func native(v int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(v)) }

func bytesOf(a netip.Addr) []byte { v := a.As4(); return v[:] }

// write adds the message for one of the four entries of a peer.
func (b *bareLoader) write(m *batch, part int, l subnet.Lease, id int, add bool) {
	at, to := l.Subnets[subnet.V4], l.Endpoints[subnet.V4]
	flags, next := uint16(unix.NLM_F_CREATE|unix.NLM_F_EXCL), uint16(0)
	if !add {
		flags, next = 0, 1 // RTM_DELx is RTM_NEWx + 1.
	}
	neighbour := func(family, flags byte, state uint16) []byte {
		fixed := append([]byte{family, 0, 0, 0}, native(b.index)...)
		return append(binary.NativeEndian.AppendUint16(fixed, state), flags, 0)
	}
	switch part {
	case 0:
		m.begin(unix.RTM_NEWNEIGH+next, flags, neighbour(unix.AF_BRIDGE, unix.NTF_SELF, unix.NUD_PERMANENT|unix.NUD_NOARP)...)
		m.attr(unix.NDA_LLADDR, to.MAC[:])
		m.attr(unix.NDA_DST, bytesOf(to.PublicIP))
	case 1:
		m.begin(unix.RTM_NEWNEIGH+next, flags, neighbour(unix.AF_INET, 0, unix.NUD_PERMANENT)...)
		m.attr(unix.NDA_DST, bytesOf(at.Addr()))
		if add {
			m.attr(unix.NDA_LLADDR, to.MAC[:])
		}
	case 2:
		if !add {
			m.begin(unix.RTM_DELNEXTHOP, 0, make([]byte, 8)...)
			m.attr(unix.NHA_ID, native(id))
			return
		}
		m.begin(unix.RTM_NEWNEXTHOP, flags, append([]byte{unix.AF_INET, 0, kernel.Protocol, 0}, native(unix.RTNH_F_ONLINK)...)...)
		m.attr(unix.NHA_ID, native(id))
		m.attr(unix.NHA_OIF, native(b.index))
		m.attr(unix.NHA_GATEWAY, bytesOf(at.Addr()))
	case 3:
		fixed := append([]byte{unix.AF_INET, subnetLen, 0, 0, unix.RT_TABLE_MAIN, kernel.Protocol, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}, native(0)...)
		if !add {
			fixed[6], fixed[7] = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC
		}
		m.begin(unix.RTM_NEWROUTE+next, flags, fixed...)
		m.attr(unix.RTA_DST, bytesOf(at.Addr()))
		if add {
			m.attr(attrRouteNexthop, native(id))
		}
	}
}

func (b *bareLoader) prepare(leases []subnet.Lease, from int, add bool) (func(context.Context) error, error) {
	var batches []*batch
	m := &batch{}
	parts := []int{0, 1, 2, 3}
	if !add {
		parts = []int{3, 2, 1, 0}
	}
	for _, part := range parts {
		for i, l := range leases {
			b.write(m, part, l, firstID+from+i, add)
			if m.count == bareBatch {
				batches = append(batches, m)
				m = &batch{}
			}
		}
	}
	if m.count > 0 {
		batches = append(batches, m)
	}
	for _, m := range batches { // The last of each is answered.
		flags := m.b[m.start+6:]
		binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	}
	return func(ctx context.Context) error { return b.send(ctx, batches) }, nil
}

func (b *bareLoader) send(ctx context.Context, batches []*batch) error {
	return b.ns.Do(func() (err error) {
		if b.sock, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(b.sock)) }()
		if err := unix.SetsockoptInt(b.sock, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(b.sock, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
			return err
		}
		for _, m := range batches {
			if err := errors.Join(ctx.Err(), b.exchange(m)); err != nil {
				return err
			}
		}
		return nil
	})
}

// exchange sends one batch and takes the answer to its last message; any other
// answer is an error.
func (b *bareLoader) exchange(m *batch) error {
	if _, err := unix.Write(b.sock, m.b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var in [512]byte
	n, err := unix.Read(b.sock, in[:])
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(in[4:]) != unix.NLMSG_ERROR {
		return errors.New("receive: not an answer")
	}
	if errno := int32(binary.NativeEndian.Uint32(in[unix.SizeofNlMsghdr:])); errno != 0 {
		return fmt.Errorf("message %d: %w", binary.NativeEndian.Uint32(in[8:]), unix.Errno(-errno))
	}
	return nil
}

// deviceIndex is the number of the overlay's device in a namespace.
func deviceIndex(ns *lab.Namespace) (index int, err error) {
	err = ns.Do(func() error {
		i, err := net.InterfaceByName(deviceName)
		if err == nil {
			index = i.Index
		}
		return err
	})
	return index, err
}

// runIn runs a program in a namespace; what it says is part of its error.
func runIn(ctx context.Context, ns *lab.Namespace, program string, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := ns.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(said.Bytes()[:min(said.Len(), 300)]))
	}
	return nil
}
