package proxy

import (
	"hash/maphash"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

func TestPortsFor(t *testing.T) {
	for _, tc := range []struct {
		name  string
		local netns.LocalPorts
		want  portSet
	}{
		{"the kernel's default", netns.LocalPorts{Ephemeral: netns.PortRange{First: 32768, Last: 60999}},
			portSet{{First: 16384, Last: 32767}}},
		{"a little wider", netns.LocalPorts{Ephemeral: netns.PortRange{First: 20000, Last: 65535}},
			portSet{{First: 1024, Last: 14999}, {First: 15091, Last: 19999}}},
		{"all of the usual range", netns.LocalPorts{Ephemeral: netns.PortRange{First: 15000, Last: 61000}},
			portSet{{First: 1024, Last: 14999}, {First: 61001, Last: 65535}}},
		{"everything", netns.LocalPorts{Ephemeral: netns.PortRange{First: 1024, Last: 65535}}, nil},
		{"everything, with a reserve", netns.LocalPorts{Ephemeral: netns.PortRange{First: 1024, Last: 65535},
			Reserved: []netns.PortRange{{First: 80, Last: 80}, {First: 30000, Last: 30099}, {First: 15006, Last: 15006}}},
			portSet{{First: 30000, Last: 30099}}},
		{"the whole usual range in reserve", netns.LocalPorts{Ephemeral: netns.PortRange{First: 1024, Last: 65535},
			Reserved: []netns.PortRange{{First: 16384, Last: 32767}}}, portSet{{First: 16384, Last: 32767}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, portsFor(tc.local)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPortSetAt(t *testing.T) {
	s := portSet{{First: 5, Last: 7}, {First: 100, Last: 100}, {First: 65534, Last: 65535}}
	var got []uint16
	for i := range s.len() {
		got = append(got, s.at(uint32(i)))
	}
	if diff := cmp.Diff([]uint16{5, 6, 7, 100, 65534, 65535}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestPortsComeAroundLate wants every port of the range once before any comes again, for one client and application.
func TestPortsComeAroundLate(t *testing.T) {
	s := &sourcePorts{seed: maphash.MakeSeed(), read: time.Now().Add(time.Hour), set: portSet{{First: 16384, Last: 32767}}}
	client, app := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("10.0.0.2:80")
	seen := map[uint16]bool{}
	for range s.set.len() {
		port, err := s.next(client, app, 0)
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] {
			t.Fatalf("port %d came again after %d others of %d", port, len(seen), s.set.len())
		}
		seen[port] = true
	}
	// Another application starts elsewhere.
	a, _ := s.next(client, app, 0)
	b, _ := s.next(client, netip.MustParseAddrPort("10.0.0.2:81"), 0)
	c, _ := s.next(netip.MustParseAddr("10.0.0.3"), app, 0)
	if a == b && b == c {
		t.Errorf("all start at port %d", a)
	}
}

// TestPortsGoAroundWhatIsInUse takes a long run of ports for live, and wants a free one within the attempts of one connection.
func TestPortsGoAroundWhatIsInUse(t *testing.T) {
	s := &sourcePorts{seed: maphash.MakeSeed(), read: time.Now().Add(time.Hour), set: portSet{{First: 16384, Last: 32767}}}
	client, app := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("10.0.0.2:80")
	live := map[uint16]bool{}
	for range s.set.len() * 9 / 10 {
		port, _ := s.next(client, app, 0)
		live[port] = true
	}
	for range s.set.len() / 10 {
		s.next(client, app, 0) // these have ended
	}
	for range 100 {
		found := false
		for failed := range bindAttempts {
			port, err := s.next(client, app, failed)
			if err != nil {
				t.Fatal(err)
			}
			if found = !live[port]; found {
				break
			}
		}
		if !found {
			t.Fatalf("no free port in %d attempts with %d of %d in use", bindAttempts, len(live), s.set.len())
		}
	}
}

func TestNoPorts(t *testing.T) {
	s := &sourcePorts{read: time.Now().Add(time.Hour)}
	if _, err := s.next(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("10.0.0.2:80"), 0); err != errNoPorts {
		t.Errorf("got %v", err)
	}
}
