// Package planners knows the backends that there are.
package planners

import (
	"fmt"
	"strings"

	"github.com/ripstop-net/ripstop/backend/hostgw"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// types lists the backends for an error's text.
var types = []string{vxlan.Type, hostgw.Type, allocType}

// Parse reads a network config's backend. Its errors wrap
// [subnet.ErrMalformedConfig]; that of a type which there is not lists those
// which there are.
func Parse(b subnet.Backend) (plan.Options, error) {
	switch b.Type {
	case vxlan.Type:
		return vxlan.ParseOptions(b)
	case hostgw.Type:
		return hostgw.Options{}, nil
	case allocType:
		return allocOptions{}, nil
	}
	return nil, fmt.Errorf("%w: Backend: there is no backend of Type %q: there are %s", subnet.ErrMalformedConfig, b.Type, strings.Join(types, ", "))
}

// UnknownKeys names the keys of a config's Backend object that mean nothing,
// sorted.
func UnknownKeys(b subnet.Backend) []string {
	if b.Type == vxlan.Type {
		return vxlan.UnknownKeys(b)
	}
	return subnet.UnknownKeys([]byte(b.Options), "Type")
}

// Compatible tells whether nodes of the one backend reach those of the other, as
// they must where daemons are restarted one by one after a change. By one that
// cannot be read there are no nodes.
func Compatible(a, b subnet.Backend) bool {
	was, errA := Parse(a)
	is, errB := Parse(b)
	switch {
	case errA != nil || errB != nil:
		return true
	case a.Type != b.Type:
		return false
	}
	if was, ok := was.(vxlan.Options); ok {
		return was.OnWire(is.(vxlan.Options))
	}
	return true
}
