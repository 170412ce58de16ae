package settings

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
)

func pushed(t *testing.T, name string, content proto.Message) []*discoveryv3.Resource {
	t.Helper()
	body, err := anypb.New(content)
	if err != nil {
		t.Fatal(err)
	}
	return []*discoveryv3.Resource{{Name: name, Resource: body}}
}

func TestHolder(t *testing.T) {
	var h Holder
	handler := h.Handler()
	if !handler.Optional {
		t.Error("a start would wait for a type that only our control plane has")
	}
	var told []Settings
	cancel := h.Subscribe(func(s *Settings) {
		if s != h.Current() {
			t.Error("told of settings that are not in force")
		}
		told = append(told, *s)
	})
	push := func(name string, content proto.Message, want *Settings) {
		t.Helper()
		if rejected := handler.Apply(pushed(t, name, content), nil); rejected != nil {
			t.Errorf("rejected: %v", rejected)
		}
		if diff := cmp.Diff(want, h.Current()); diff != "" {
			t.Errorf("in force (-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff(&Settings{}, h.Current()); diff != "" {
		t.Errorf("before any push (-want +got):\n%s", diff)
	}
	first := &Settings{TrustDomain: "new.example", TrustDomainAliases: []string{"old.example"}}
	push("mesh", &extension.Settings{TrustDomain: "new.example", TrustDomainAliases: []string{"old.example", "new.example", "old.example"}}, first)
	push("mesh", &extension.Settings{TrustDomain: "new.example", TrustDomainAliases: []string{"old.example"}}, first) // no change
	push("other", &extension.Settings{TrustDomain: "other.example"}, first)
	second := &Settings{TrustDomain: "new.example", RegistryOnly: true}
	push("mesh", &extension.Settings{TrustDomain: "new.example", OutboundPolicy: extension.Settings_REGISTRY_ONLY}, second)
	handler.Apply(nil, []string{"mesh"})
	cancel()
	push("mesh", &extension.Settings{TrustDomain: "new.example"}, &Settings{TrustDomain: "new.example"})
	if diff := cmp.Diff([]Settings{*first, *second, {}}, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// What cannot be used changes nothing.
func TestHolderRejects(t *testing.T) {
	var h Holder
	apply := h.Handler().Apply
	apply(pushed(t, "mesh", &extension.Settings{TrustDomain: "mesh.example", OutboundPolicy: extension.Settings_REGISTRY_ONLY}), nil)
	for want, content := range map[string]proto.Message{
		"trust domain":    &extension.Settings{},
		"empty":           &extension.Settings{TrustDomain: "mesh.example", TrustDomainAliases: []string{""}},
		"policy 7":        &extension.Settings{TrustDomain: "mesh.example", OutboundPolicy: 7},
		"decode settings": &workload.Address{},
	} {
		rejected := apply(pushed(t, "mesh", content), nil)
		if len(rejected) != 1 || rejected[0].Name != "mesh" || !strings.Contains(rejected[0].Err.Error(), want) {
			t.Errorf("%v: got %v, want a rejection that mentions %q", content, rejected, want)
		}
		if s := h.Current(); !s.RegistryOnly || s.TrustDomain != "mesh.example" {
			t.Fatalf("%v: what was in force is gone: %+v", content, s)
		}
	}
}
