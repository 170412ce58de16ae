package harness

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// frame builds an Ethernet frame with a TCP segment.
func frame(src, dst string, flags byte, payload string) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	tcp := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(tcp[0:], s.Port())
	binary.BigEndian.PutUint16(tcp[2:], d.Port())
	tcp[12], tcp[13] = 5<<4, flags
	tcp = append(tcp, payload...)
	var out []byte
	if s.Addr().Is4() {
		out = make([]byte, etherHeader+20)
		binary.BigEndian.PutUint16(out[12:], etherTypeIPv4)
		ip := out[etherHeader:]
		ip[0], ip[9] = 0x45, protocolTCP
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
		copy(ip[12:], s.Addr().AsSlice())
		copy(ip[16:], d.Addr().AsSlice())
	} else {
		out = make([]byte, etherHeader+ipv6Header)
		binary.BigEndian.PutUint16(out[12:], etherTypeIPv6)
		ip := out[etherHeader:]
		ip[0], ip[6] = 0x60, protocolTCP
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		copy(ip[8:], s.Addr().AsSlice())
		copy(ip[24:], d.Addr().AsSlice())
	}
	return append(out, tcp...)
}

func TestParseFrame(t *testing.T) {
	v4 := frame("10.0.0.1:1000", "10.0.0.2:2000", flagSYN|flagACK, "")
	v6 := frame("[fd00::1]:1000", "[fd00::2]:15008", flagACK, "hello")
	// A minimum frame is padded; the padding is not payload.
	padded := append(frame("10.0.0.1:1000", "10.0.0.2:2000", flagACK, "x"), 0, 0, 0, 0)
	udp := frame("10.0.0.1:1000", "10.0.0.2:2000", 0, "")
	udp[etherHeader+9] = 17
	fragment := frame("10.0.0.1:1000", "10.0.0.2:2000", 0, "")
	fragment[etherHeader+7] = 3
	arp := frame("10.0.0.1:1000", "10.0.0.2:2000", 0, "")
	arp[12], arp[13] = 8, 6
	unset := frame("10.0.0.1:1000", "10.0.0.2:2000", flagACK, "large")
	unset[etherHeader+2], unset[etherHeader+3] = 0, 0
	for _, test := range []struct {
		name    string
		frame   []byte
		ok      bool
		dst     string
		syn     bool
		payload string
	}{
		{"IPv4", v4, true, "10.0.0.2:2000", true, ""},
		{"IPv6", v6, true, "[fd00::2]:15008", false, "hello"},
		{"padded", padded, true, "10.0.0.2:2000", false, "x"},
		{"no length", unset, true, "10.0.0.2:2000", false, "large"},
		{"UDP", udp, false, "", false, ""},
		{"fragment", fragment, false, "", false, ""},
		{"ARP", arp, false, "", false, ""},
		{"empty", nil, false, "", false, ""},
	} {
		s, ok := parseFrame(test.frame)
		if ok != test.ok || ok && (s.dst.String() != test.dst || s.syn != test.syn || string(s.payload) != test.payload) {
			t.Errorf("%s: %+v, %t", test.name, s, ok)
		}
	}
	for _, whole := range [][]byte{v4, v6, padded, unset} {
		for n := range whole {
			parseFrame(whole[:n]) // must not panic
		}
	}
}

func TestCaptureJudgesFlows(t *testing.T) {
	const mark = "SECRET"
	c := &Capture{marks: []string{mark}, flows: map[[2]netip.AddrPort]*Flow{}}
	a, b := "10.0.0.1:40000", "10.0.0.2:15008"
	send := func(src, dst string, flags byte, payload string) {
		t.Helper()
		s, ok := parseFrame(frame(src, dst, flags, payload))
		if !ok {
			t.Fatal("not a frame")
		}
		c.note(s, time.Now())
	}
	send(a, b, flagSYN, "")
	send(a, b, flagACK, "\x16\x03\x01 hello")
	send(b, a, flagSYN|flagACK, "")
	send(b, a, flagACK, "\x16\x03\x03 hello")
	if flows := c.Flows(); len(flows) != 2 || len(NotTunnelled(flows)) != 0 || len(InClear(flows)) != 0 {
		t.Errorf("a tunnel: flows\n%snot tunnelled\n%s", Describe(flows, 9), Describe(NotTunnelled(flows), 9))
	}
	send("10.0.0.1:40001", "10.0.0.2:9000", flagSYN, "")
	send("10.0.0.1:40001", "10.0.0.2:9000", flagACK, "abc SEC")
	send("10.0.0.1:40001", "10.0.0.2:9000", flagACK, "R")
	send("10.0.0.1:40001", "10.0.0.2:9000", flagACK, "ET def")
	send("10.0.0.1:40002", "10.0.0.2:15008", flagSYN, "")
	send("10.0.0.1:40002", "10.0.0.2:15008", flagACK, "GET / HTTP/1.1")
	send("10.0.0.9:40002", "10.0.0.2:9000", flagACK, "SECRET of another pod")
	among := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	flows := c.Flows(among...)
	if clear := InClear(flows); len(clear) != 1 || clear[0].Src.Port() != 40001 {
		t.Errorf("in clear\n%s", Describe(clear, 9))
	}
	if bare := NotTunnelled(flows); len(bare) != 2 {
		t.Errorf("not tunnelled\n%s", Describe(bare, 9))
	}
	// A port that is used again is another flow.
	send("10.0.0.1:40001", "10.0.0.2:9000", flagSYN, "")
	if n := len(c.Flows(among...)); n != len(flows)+1 {
		t.Errorf("%d flows after a port was used again, want %d", n, len(flows)+1)
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		// Succeeds at checks 2, 4, 5 and 6.
		err := Await(t.Context(), Until{What: "x", Within: time.Minute, InARow: 3}, func(context.Context) error {
			if n++; n == 2 || n >= 4 {
				return nil
			}
			return errors.New("no")
		})
		if err != nil || n != 6 {
			t.Errorf("after %d checks: %v", n, err)
		}
		start := time.Now()
		err = Await(t.Context(), Until{What: "the sun", Within: 10 * time.Second}, func(context.Context) error { return errors.New("night") })
		if err == nil || !strings.Contains(err.Error(), "the sun") || !strings.Contains(err.Error(), "night") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestParseAccessLog(t *testing.T) {
	text := `2026-01-01T00:00:00Z info access connection complete src.addr=10.0.0.1:1 src.identity="spiffe://cluster.local/ns/a/sa/client" dst.identity="spiffe://cluster.local/ns/a/sa/server" direction="inbound" bytes_sent=3
{"level":"INFO","msg":"x","src.identity":"spiffe://td/ns/a/sa/b","dst.identity":"spiffe://td/ns/c/sa/d","direction":"outbound"}
level=INFO msg="no identities" direction=inbound src.identity=spiffe://td/ns/a/sa/b
`
	got := ParseAccessLog(text)
	if len(got) != 2 || got[0].Direction != "inbound" || got[0].SourceIdentity != "spiffe://cluster.local/ns/a/sa/client" ||
		got[1].Direction != "outbound" || got[1].DestIdentity != "spiffe://td/ns/c/sa/d" {
		t.Errorf("got %+v", got)
	}
}

func TestObjects(t *testing.T) {
	objects, err := Objects([]byte("# only a comment\n---\nkind: A\nmetadata: {name: x}\n---\n---\nkind: B\n"))
	if err != nil || len(objects) != 2 || objects[0].GetName() != "x" || objects[1].GetKind() != "B" {
		t.Errorf("%v, %v", objects, err)
	}
	if _, err := Objects([]byte("a: [")); err == nil {
		t.Error("no error for what is not YAML")
	}
}
