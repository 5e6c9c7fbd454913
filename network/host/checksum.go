package host

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// TxChecksum is what is done about the offload of checksums of what is sent by
// the tunnel's devices: to leave them to the hardware costs nothing, but kernels
// and network cards have got them wrong, at which TCP and UDP between pods hang
// while pings pass.
type TxChecksum string

// The policies. The zero TxChecksum is as TxChecksumAuto.
const (
	// TxChecksumAuto turns the offload off where the kernel is known to be wrong.
	TxChecksumAuto TxChecksum = "auto"
	TxChecksumOn   TxChecksum = "on"
	TxChecksumOff  TxChecksum = "off"
)

// ParseTxChecksum reads a policy.
func ParseTxChecksum(text string) (TxChecksum, error) {
	switch p := TxChecksum(text); p {
	case TxChecksumAuto, TxChecksumOn, TxChecksumOff:
		return p, nil
	}
	return "", fmt.Errorf("%q is none of auto, on and off", text)
}

// Without tells whether the offload is to be off on a kernel of a release such as
// "6.1.0-18-amd64". Before Linux 5.7, address translation of an encapsulated
// packet whose checksum was yet to be made wrote one where none was to be
// (udp_manip_pkt; mended by "netfilter: nat: never update the UDP checksum
// when it's 0"). A release that cannot be read is taken for new.
func (p TxChecksum) Without(release string) bool {
	switch p {
	case TxChecksumOn:
		return false
	case TxChecksumOff:
		return true
	}
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	if at := strings.IndexFunc(minor, func(r rune) bool { return r < '0' || r > '9' }); at >= 0 {
		minor = minor[:at]
	}
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return errA == nil && errB == nil && (a < 5 || a == 5 && b < 7)
}

// Release is that of the running kernel, "" where it cannot be told.
func Release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
