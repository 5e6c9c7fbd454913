package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ripstop-net/ripstop/subnet"
)

// awayError says what is wrong with each endpoint.
type awayError struct {
	said []string
	err  error
}

func (e *awayError) Error() string {
	return fmt.Sprintf("etcd is away: %s (%v)", strings.Join(e.said, "; "), e.err)
}

func (e *awayError) Unwrap() error { return e.err }

// IsAway tells whether an error of a [Store] says that no endpoint answers.
func IsAway(err error) bool {
	var said *awayError
	return errors.As(err, &said)
}

// explain turns a client's error into one that says what is wrong and what to
// do. ctx is the caller's, without the request's own limit. What is refused
// wraps [subnet.ErrRefused].
func (s *Store) explain(ctx context.Context, err error) error {
	var said *awayError
	switch {
	case err == nil || errors.Is(err, subnet.ErrConflict) || errors.Is(err, subnet.ErrRefused) || errors.As(err, &said):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if advice := s.refusal(err); advice != "" {
		return fmt.Errorf("%w: %s: %w", subnet.ErrRefused, advice, err)
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("etcd's database is full: compact and defragment it, then disarm its alarm: %w", err)
	case away(err):
		return &awayError{said: s.diagnose(ctx), err: err}
	}
	return err
}

// refusal is what an operator can do about an error that stays, "" for any other.
func (s *Store) refusal(err error) string {
	for _, r := range []struct {
		err    error
		advice string
	}{
		{rpctypes.ErrAuthFailed, "wrong user or password: check --etcd-username and --etcd-password-file"},
		{rpctypes.ErrUserEmpty, "etcd asks for a user: set --etcd-username and --etcd-password-file"},
		{rpctypes.ErrUserNotFound, "etcd does not know the user: check --etcd-username"},
		{rpctypes.ErrPermissionDenied, s.who() + " lacks rights: grant it readwrite on the prefix " + s.opts.Prefix + "/, or the least that Documentation/security.md names"},
	} {
		if errors.Is(err, r.err) {
			return r.advice
		}
	}
	return ""
}

func (s *Store) who() string {
	if s.opts.Username == "" {
		return "the certificate's user"
	}
	return fmt.Sprintf("etcd user %q", s.opts.Username)
}

// away tells whether an error means that no working etcd was reached in time.
func away(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var e rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &e) {
		code = e.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}
