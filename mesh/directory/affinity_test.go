package directory_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/extension"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// sticky is a service with affinity.
func sticky(t time.Duration) func(*workloadpb.Service) {
	return extended(extension.ServiceOptionsName, &extension.ServiceOptions{
		ClientIpAffinity: &extension.ClientIPAffinity{TimeoutSeconds: uint32(t.Seconds())},
	})
}

func extended(name string, m proto.Message) func(*workloadpb.Service) {
	return func(s *workloadpb.Service) {
		body, err := anypb.New(m)
		if err != nil {
			panic(err)
		}
		s.Extensions = append(s.Extensions, &workloadpb.Extension{Name: name, Config: body})
	}
}

// TestPortNamesOnTheWire: names come with options of any kind, and a port that cannot be is a fault of the service.
func TestPortNamesOnTheWire(t *testing.T) {
	named := func(names map[uint32]string) func(*workloadpb.Service) {
		return extended(extension.ServiceOptionsName, &extension.ServiceOptions{PortNames: names})
	}
	d := newDirectory()
	apply(t, d, service("web", sticky(time.Minute), named(map[uint32]string{443: "HTTPS", 80: "http"})))
	s := web(d)
	if port, ok := s.PortNamed("https"); port != 443 || !ok {
		t.Errorf("https is %d, %v", port, ok)
	}
	if port, ok := s.PortNamed("grpc"); ok {
		t.Errorf("grpc is %d", port)
	}
	if s.Affinity != time.Minute || len(s.PortNames) != 2 || s.PortNames[0].Port != 80 {
		t.Errorf("affinity %v, ports %v", s.Affinity, s.PortNames)
	}
	for dump := range d.DumpServices() {
		if fmt.Sprint(dump.PortNames) != "map[80:http 443:https]" {
			t.Errorf("shown as %v", dump.PortNames)
		}
	}
	if rejected := d.HandleAddresses(resources(t, service("web", named(map[uint32]string{65536: "big"}))), nil); len(rejected) != 1 {
		t.Errorf("rejected %v", rejected)
	}
}

func TestAffinityOnTheWire(t *testing.T) {
	for _, tt := range []struct {
		name     string
		service  *workloadpb.Service
		want     time.Duration
		rejected bool
	}{
		{name: "none", service: service("web")},
		{name: "a minute", service: service("web", sticky(time.Minute)), want: time.Minute},
		{name: "the default", service: service("web", sticky(0)), want: 3 * time.Hour},
		{name: "options without it", service: service("web", extended(extension.ServiceOptionsName, &extension.ServiceOptions{}))},
		{name: "another's extension", service: service("web", extended("example.com", &extension.Settings{}))},
		{name: "not what its name says", service: service("web", extended(extension.ServiceOptionsName, &extension.Settings{})), rejected: true},
	} {
		d := newDirectory()
		rejected := d.HandleAddresses(resources(t, tt.service), nil)
		if tt.rejected {
			if len(rejected) != 1 {
				t.Errorf("%s: rejected %v", tt.name, rejected)
			}
			continue
		}
		if got := web(d).Affinity; got != tt.want || len(rejected) > 0 {
			t.Errorf("%s: %v, want %v; rejected %v", tt.name, got, tt.want, rejected)
		}
	}
}

func TestAffinity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirectory()
		apply(t, d, service("web", sticky(time.Hour)))
		endpoints(t, d, 5)
		client := func(i int) directory.PickRequest {
			name := fmt.Sprint("client", i)
			if workload(d, name) == nil {
				apply(t, d, pod(name, fmt.Sprintf("10.8.%d.%d", i/250, i%250+1)))
			}
			return directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, name)}
		}
		const clients = 400
		had := make([]string, clients)
		spread := map[string]int{}
		for i := range clients {
			had[i] = names(picks(t, d, client(i), 5))
			spread[had[i]]++
		}
		for name, n := range spread {
			if want := clients / 5; n < want/2 || n > want*3/2 {
				t.Errorf("%d of %d clients have %s", n, clients, name)
			}
		}
		moved := func() (n int) {
			for i := range clients {
				if names(picks(t, d, client(i), 1)) != had[i] {
					n++
				}
			}
			return n
		}
		// New endpoints take no client away.
		apply(t, d, pod("p5", "10.0.0.6", serves("web")))
		if n := moved(); n != 0 {
			t.Errorf("a new endpoint moved %d clients", n)
		}
		// Who forgets, chooses the same, but for the share of the new one.
		time.Sleep(time.Hour + time.Second)
		if n := moved(); n == 0 || n > clients/3 {
			t.Errorf("after their time %d of %d clients moved, want about a sixth", n, clients)
		}
		for i := range clients {
			had[i] = names(picks(t, d, client(i), 1))
		}
		// Only the clients of an endpoint that is gone move.
		apply(t, d, pod("p1", "10.0.0.2", serves("web"), unhealthy))
		for i := range clients {
			if now := names(picks(t, d, client(i), 2)); now != had[i] && had[i] != "p1" || now == "p1" {
				t.Fatalf("client %d had %s and has %s", i, had[i], now)
			}
		}
		// A connection within the time prolongs it.
		r := client(0)
		mine := names(picks(t, d, r, 1))
		apply(t, d, pod("p6", "10.0.0.7", serves("web", nil...)))
		for range 5 {
			time.Sleep(50 * time.Minute)
			if now := names(picks(t, d, r, 1)); now != mine {
				t.Errorf("client moved from %s to %s", mine, now)
			}
		}
		// What was tried in vain, or is ejected, is left.
		r.Exclude = []string{uid(mine)}
		if now := names(picks(t, d, r, 5)); now == mine {
			t.Errorf("picked %s, which was tried", now)
		}
		r.Exclude = nil
		mine = names(picks(t, d, r, 1))
		for range 5 {
			d.Failed(web(d).ServiceKey, uid(mine))
		}
		if now := names(picks(t, d, r, 5)); now == mine {
			t.Errorf("picked %s, which is ejected", now)
		}
		remove(t, d, uid("p0"), uid("p1"), uid("p2"), uid("p3"), uid("p4"), uid("p5"), uid("p6"))
		if _, err := d.Pick(r); !errors.Is(err, directory.ErrNoEndpoint) {
			t.Errorf("without endpoints: %v", err)
		}
	})
}

// TestAffinityIsTheSameEverywhere: two proxies that know the same choose the same.
func TestAffinityIsTheSameEverywhere(t *testing.T) {
	var got [2][]string
	for i := range got {
		d := newDirectory()
		apply(t, d, service("web", sticky(time.Hour)))
		order := []int{0, 1, 2, 3, 4, 5, 6, 7}
		if i == 1 {
			slices.Reverse(order)
		}
		for _, n := range order {
			apply(t, d, pod(fmt.Sprint("p", n), fmt.Sprintf("10.0.0.%d", n+1), serves("web")))
		}
		for c := range 50 {
			apply(t, d, pod("client", fmt.Sprintf("10.8.0.%d", c+1)))
			got[i] = append(got[i], names(picks(t, d, directory.PickRequest{Service: web(d), Port: 80, Source: workload(d, "client")}, 3)))
		}
	}
	if !slices.Equal(got[0], got[1]) {
		t.Errorf("one proxy chose %v, the other %v", got[0], got[1])
	}
}
