package path

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/neterror"
	"github.com/ripstop-net/ripstop/network/ping"
	"github.com/ripstop-net/ripstop/network/probe"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// On is a Means that tries out a target from the network namespace of whoever opened
// it.
type On struct {
	target Target
	asker  *probe.Asker
}

// NewOn makes the Means of a target. The asker is the caller's to close.
func NewOn(t Target, asker *probe.Asker) *On { return &On{t, asker} }

// Ping implements Means.
func (o *On) Ping(ctx context.Context, by Layer, size int) (time.Duration, error) {
	to := o.target.Their[by]
	opts := ping.Options{DontFragment: true, HearErrors: true, Timeout: answerWithin}
	if size != 0 {
		opts.Size = size - pingOverhead[subnet.FamilyOf(to)]
	}
	rtt, err := ping.Once(ctx, o.target.Own[by], to, opts)
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		return 0, &TooLargeError{}
	case errors.Is(err, ping.ErrNoAnswer):
		return 0, ErrSilent
	}
	return rtt, o.reason(err, by)
}

// pingOverhead is what a packet has before an echo request's data: the headers of IP
// and ICMP, in bytes.
var pingOverhead = subnet.PerFamily[int]{subnet.V4: 20 + 8, subnet.V6: 40 + 8}

// Echo implements Means.
func (o *On) Echo(ctx context.Context, by, back Layer, size, answer int) (time.Duration, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	got, err := o.asker.Ask(ctx, probe.Question{
		From: o.target.Own[by], To: o.target.Their[by], Port: o.target.EchoPort, Layer: layers[by], Other: back != by,
		Size: max(size, answer), AnswerSize: answer, DontFragment: true, MaySplit: size < answer,
	})
	var network *neterror.Error
	switch {
	case err == nil && answer != 0 && got.Size < answer:
		return 0, nil, ErrSilent // The peer's own device takes less.
	case err == nil:
		return got.RTT, troubles(got.Trouble), nil
	case errors.Is(err, context.DeadlineExceeded):
		return 0, nil, ErrSilent
	case errors.As(err, &network) && network.Errno == unix.EMSGSIZE && !network.By.IsValid():
		return 0, nil, &TooLargeError{MTU: network.MTU}
	case errors.Is(err, unix.EMSGSIZE): // One on the way says so.
		return 0, nil, ErrSilent
	case errors.Is(err, unix.ECONNREFUSED):
		return 0, nil, ErrRefused
	}
	return 0, nil, o.reason(err, by)
}

// layers are the names that probing has for them.
var layers = [2]probe.Layer{Underlay: probe.Underlay, Overlay: probe.Overlay}

// reason makes an error of the network's, of what was sent by a layer, one that says that
// there is no way, or that this host gets no answer from the next hop. Of a router's next
// hop a router says so: that is the end of the way which it has.
func (o *On) reason(err error, by Layer) error {
	var said *neterror.Error
	if errors.As(err, &said) && said.Unresolved && said.By == o.target.Own[by] {
		return fmt.Errorf("%w: %w", ErrUnresolved, err)
	}
	for _, errno := range []unix.Errno{unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EACCES, unix.EPERM, unix.EINVAL, unix.ENETDOWN, unix.EADDRNOTAVAIL} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
	}
	return err
}

// troubles names what a peer says is wrong there.
func troubles(t probe.Trouble) (names []string) {
	for i, name := range status.Names {
		if t&probe.Condition(i) != 0 {
			names = append(names, name)
		}
	}
	if t&probe.InTheWay != 0 {
		names = append(names, "another's firewall rule is in the way")
	}
	return names
}
