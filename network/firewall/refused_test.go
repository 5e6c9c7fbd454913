package firewall

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// tableOwner is NFT_TABLE_F_OWNER: nobody but the socket that made a table may
// change it, and it goes with the socket.
const tableOwner = 2

// hold makes a table of our name that belongs to the socket.
func (c *conn) hold(t *testing.T) {
	t.Helper()
	body, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(TableName), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwner)},
	})
	if err != nil {
		t.Fatal(err)
	}
	message := func(typ netlink.HeaderType, flags netlink.HeaderFlags, family byte, id uint16, body []byte) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: typ, Flags: netlink.Request | flags},
			Data:   append(binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, id), body...),
		}
	}
	if _, err := c.sock.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge, unix.NFPROTO_INET, 0, body),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.sock.Receive(); err != nil {
		t.Fatal(err)
	}
}

// What the kernel refuses is told once and tried again, also while peers come
// and go; when it is no longer refused all is made up for.
func TestRefusedIsToldAndTriedAgain(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	core, logs := observer.New(zap.InfoLevel)
	f.log = zap.New(core)
	other := outside(t, ns)
	other.hold(t)
	f.Update(nil, addrs(0, 3))
	running(t, f)
	f.Update(nil, addrs(3, 1))
	f.Update(addrs(0, 1), nil)
	if err := f.Status(t.Context()).Err; !errors.Is(err, unix.EPERM) {
		t.Errorf("status: %v", err)
	}
	if r := f.Report(t.Context()); !r.Kept || r.Problem == "" {
		t.Errorf("report: %+v", r)
	}
	eventually(t, "it is tried several times", func() bool {
		<-f.turn
		defer func() { f.turn <- struct{}{} }()
		return f.tries > 3
	})
	if n := logs.FilterMessageSnippet("not as wanted").Len(); n != 1 {
		t.Errorf("told %d times", n)
	}
	other.close()
	c := outside(t, ns)
	eventually(t, "the table is there with the peers of now", func() bool {
		return c.must(t).peers.len() == 3 && f.Status(t.Context()).Err == nil
	})
	if n := logs.FilterMessageSnippet("right again").Len(); n != 1 {
		t.Errorf("said %d times that it is right again", n)
	}
}
