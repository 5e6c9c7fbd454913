package kernel

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestCarriersTellWhatConcernsThem(t *testing.T) {
	up := uint32(unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP)
	at := func(index int, name string, flags uint32) linkMessage {
		return linkMessage{index: index, name: name, flags: flags}
	}
	var c carriers
	c.want("eth0")
	c.know(at(2, "eth0", up))
	c.know(at(3, "eth1", up)) // As a reading shows another hand's route.
	for i, step := range []struct {
		event linkMessage
		gone  bool
		news  bool
	}{
		{at(2, "eth0", up), false, false},
		{at(2, "eth0", up|unix.IFF_PROMISC), false, false},
		{at(9, "eth9", up), false, false},
		{at(9, "eth9", 0), true, false},
		{at(2, "eth0", unix.IFF_UP), false, true},
		{at(2, "eth0", up), false, true},
		{at(2, "wan", up), false, true}, // Renamed,
		{at(2, "wan", 0), false, false}, // and no matter any more.
		{at(2, "eth0", 0), false, true}, // Named back.
		{at(2, "eth0", 0), true, true},
		{at(7, "eth0", 0), false, true}, // Made again.
		{at(3, "eth1", up), true, true},
		{at(8, "eth1", up), false, false}, // Nobody wants it.
	} {
		if news := c.changed(step.event, step.gone); news != step.news {
			t.Errorf("step %d: news %t, want %t", i, news, step.news)
		}
	}
	c.forget()
	if c.changed(at(8, "eth1", 0), false) || !c.changed(at(7, "eth0", 0), false) {
		t.Error("after a new reading, what is wanted and was not met is not in mind, or what is not is")
	}
	if len(c.names) != 1 || len(c.links) != 1 {
		t.Errorf("left over: %+v", c)
	}
}
