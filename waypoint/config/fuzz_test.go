package config_test

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// FuzzApply: nothing that can come over the wire makes the store panic, what it takes can be used and dumped, and what it
// rejects has a reason.
func FuzzApply(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatalf("no stories in testdata: %v", err)
	}
	for _, file := range files {
		for key, m := range story(f, strings.TrimSuffix(filepath.Base(file), ".txtar")) {
			kind, name, _ := strings.Cut(key, " ")
			wire, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(slices.Index(order, kind)), name, wire)
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, name string, wire []byte) {
		if len(wire) > 64<<10 {
			return
		}
		s := config.NewStore(nil)
		h := s.Handlers()[int(kind)%len(order)]
		r := h.Apply([]*discoveryv3.Resource{{Name: name, Version: "1", Resource: &anypb.Any{TypeUrl: h.TypeURL, Value: wire}}}, nil)
		if len(r) > 0 && (r[0].Name != name || r[0].Err == nil || r[0].Err.Error() == "") {
			t.Fatalf("rejection %+v", r[0])
		}
		now := s.Load()
		for _, c := range now.Chains() {
			if (c.HTTP == nil) == (c.TCP == nil) {
				t.Fatalf("chain %+v is HTTP and TCP, or neither", c)
			}
			if c.TCP != nil {
				c.TCP.Choose()
			}
		}
		now.Chain(netip.MustParseAddrPort("10.1.2.3:80"))
		for _, c := range now.Clusters() {
			if c.Endpoints == nil {
				continue
			}
			for e := range c.Endpoints.All() {
				if e.HBONE == e.Identity.IsZero() || e.Host == "" && !e.Address.IsValid() || e.Address.Port() == 0 {
					t.Fatalf("endpoint %+v", e)
				}
			}
		}
		for c := range s.Dump() {
			if _, err := json.Marshal(c); err != nil {
				t.Fatalf("dump: %v", err)
			}
		}
		h.Apply(nil, []string{name})
		if len(s.Load().Chains()) != 0 {
			t.Fatal("chains are left")
		}
	})
}
