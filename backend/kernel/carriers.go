package kernel

import "golang.org/x/sys/unix"

// carriers knows the host's own links over which plain routes of ours lead, or
// are to lead. What becomes of such a link can take the routes along without a
// word (fib_sync_down_dev), or let one in that could not be made.
type carriers struct {
	names map[int]string // By number.
	links map[string]carrier
}

// carrier is a link as it was met last. One that is wanted is kept in mind also
// while it is not there.
type carrier struct {
	index  int
	flags  uint32
	wanted bool
}

// carrierFlags are those of a link on which it depends whether a route over it
// can be made and whether it carries anything.
const carrierFlags = unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP

// forget prepares for a new reading. Links that are wanted are kept in mind, in
// no known state: any event about one is news until it has been met again.
func (c *carriers) forget() {
	for name, l := range c.links {
		delete(c.names, l.index)
		if l.wanted {
			c.links[name] = carrier{wanted: true}
		} else {
			delete(c.links, name)
		}
	}
}

// want notes that a route over a link of that name was asked for.
func (c *carriers) want(name string) {
	l := c.links[name]
	if l.wanted {
		return
	}
	l.wanted = true
	c.set(name, l)
}

// know notes the state of the moment of a link that carries a route.
func (c *carriers) know(l linkMessage) {
	at := c.links[l.name]
	if at.index != l.index {
		delete(c.names, at.index)
	}
	at.index, at.flags = l.index, l.flags&carrierFlags
	c.set(l.name, at)
}

func (c *carriers) set(name string, l carrier) {
	if c.links == nil {
		c.names, c.links = map[int]string{}, map[string]carrier{}
	}
	c.links[name] = l
	if l.index != 0 {
		c.names[l.index] = name
	}
}

// changed takes an event about any link and tells whether a carrier came, went,
// got another name or another state by it.
func (c *carriers) changed(l linkMessage, gone bool) bool {
	name, known := c.names[l.index]
	left := known && (gone || name != l.name)
	if left {
		delete(c.names, l.index)
		at := c.links[name]
		if at.index, at.flags = 0, 0; at.wanted {
			c.links[name] = at
		} else {
			delete(c.links, name)
		}
	}
	at, listed := c.links[l.name]
	if gone || !listed || at.index == l.index && at.flags == l.flags&carrierFlags {
		return left
	}
	c.know(l)
	return true
}
