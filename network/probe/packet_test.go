package probe

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/bpf"
)

func sound(random *rand.Rand) (packet, int) {
	size := MinPayload + random.IntN(MaxPayload-MinPayload+1)
	return packet{
		kind: request, layer: Layer(random.IntN(2)), other: random.IntN(2) == 0, whole: random.IntN(2) == 0,
		nonce: random.Uint64(), size: MinPayload + random.IntN(size-MinPayload+1),
	}, size
}

func TestPacketsAreReadAsTheyWereWritten(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		p, size := sound(random)
		b := bytes.Repeat([]byte{0xff}, header) // What was there before is gone.
		p.put(b)
		if got, err := parse(b, size); err != nil || got != p {
			t.Fatalf("%+v of %d bytes was read as %+v, %v", p, size, got, err)
		}
		a, n := p.reply(size, Condition(3)|InTheWay)
		if n > size || n < MinPayload {
			t.Fatalf("%d bytes are answered with %d", size, n)
		}
		a.put(b)
		if got, err := parse(b, n); err != nil || got != a || got.nonce != p.nonce || got.size != size || got.trouble != 1<<3|1<<31 {
			t.Fatalf("answer %+v of %d bytes was read as %+v, %v", a, n, got, err)
		}
		if wanted := p.layer != a.layer; wanted != p.other {
			t.Fatalf("%+v is answered by the %s", p, a.layer)
		}
	}
}

// TestWireFormat holds the bytes to what other versions read.
func TestWireFormat(t *testing.T) {
	b := make([]byte, header)
	packet{kind: request, layer: Overlay, other: true, whole: true, nonce: 0x0102030405060708, size: 1400}.put(b)
	want := []byte{0x52, 0x70, 0xec, 0x40, 1, 1, 1, 3, 1, 2, 3, 4, 5, 6, 7, 8, 5, 0x78, 0, 0, 0, 0, 0, 0}
	if !bytes.Equal(b, want) {
		t.Errorf("request is\n% x, want\n% x", b, want)
	}
	packet{kind: answer, nonce: 1, size: 64, trouble: InTheWay | 1}.put(b)
	want = []byte{0x52, 0x70, 0xec, 0x40, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 64, 0, 0, 0x80, 0, 0, 1}
	if !bytes.Equal(b, want) {
		t.Errorf("answer is\n% x, want\n% x", b, want)
	}
}

func TestJunkIsNoPacket(t *testing.T) {
	b := make([]byte, header)
	packet{kind: request, nonce: 1, size: 100}.put(b)
	for name, c := range map[string]struct {
		size   int
		change func(b []byte) []byte
	}{
		"too short for a header":     {200, func(b []byte) []byte { return b[:header-1] }},
		"shorter than the least":     {MinPayload - 1, func(b []byte) []byte { return b }},
		"another magic":              {200, func(b []byte) []byte { b[0]++; return b }},
		"a later version":            {200, func(b []byte) []byte { b[offVersion]++; return b }},
		"another kind":               {200, func(b []byte) []byte { b[offKind] = 3; return b }},
		"a third layer":              {200, func(b []byte) []byte { b[offLayer] = 2; return b }},
		"an unknown flag":            {200, func(b []byte) []byte { b[offFlags] |= 4; return b }},
		"something where zero is":    {200, func(b []byte) []byte { b[offZero] = 1; return b }},
		"a request with trouble":     {200, func(b []byte) []byte { b[offTrouble] = 1; return b }},
		"an answer that outgrows it": {200, func(b []byte) []byte { binary.BigEndian.PutUint16(b[offSize:], 201); return b }},
		"an answer without a header": {200, func(b []byte) []byte { binary.BigEndian.PutUint16(b[offSize:], MinPayload-1); return b }},
	} {
		if p, err := parse(c.change(bytes.Clone(b)), c.size); err == nil {
			t.Errorf("%s is read as %+v", name, p)
		}
	}
	if _, err := parse(b, 200); err != nil {
		t.Error(err)
	}
}

// FuzzParse holds that nothing is answered with more bytes than arrived, that what is
// read is what is written, and that the kernel's filter lets all requests in.
func FuzzParse(f *testing.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 10 {
		p, _ := sound(random)
		b := make([]byte, MinPayload+random.IntN(100))
		p.put(b)
		f.Add(b)
	}
	f.Add([]byte{})
	vm, err := bpf.NewVM(requestFilter())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		passed, err := vm.Run(append(make([]byte, 8), b...))
		if err != nil {
			t.Fatal(err)
		}
		p, err := parse(b, len(b))
		if err != nil {
			return
		}
		if (passed > 0) != (p.kind == request) {
			t.Errorf("the filter keeps %d bytes of %+v", passed, p)
		}
		again := make([]byte, header)
		p.put(again)
		if !bytes.Equal(again, b[:header]) {
			t.Errorf("% x is read as %+v, which is % x", b[:header], p, again)
		}
		if a, n := p.reply(len(b), 1); p.kind == request && (n > len(b) || n < MinPayload || a.kind != answer) {
			t.Errorf("%d bytes are answered by %+v with %d", len(b), a, n)
		}
	})
}
