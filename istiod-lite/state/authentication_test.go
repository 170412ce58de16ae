package state

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

func (w world) targetRefs() []any {
	return []any{
		map[string]any{"group": "", "kind": "Service", "name": w.key().Name},
		pick(w, map[string]any{"group": "networking.istio.io", "kind": "ServiceEntry", "name": w.key().Name},
			map[string]any{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": w.key().Name},
			map[string]any{"group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "istio-waypoint"}),
	}
}

func (w world) requestAuthentication() cluster.Object {
	key := w.key()
	spec := map[string]any{}
	if w.IntN(4) > 0 {
		spec["targetRefs"] = w.targetRefs()
	}
	var rules []any
	for range w.IntN(3) {
		rules = append(rules, map[string]any{"issuer": pick(w, "http://i1", "http://i2"), "jwksUri": pick(w, "", "http://k1", "http://k2")})
	}
	spec["jwtRules"] = rules
	return cluster.RequestAuthenticationOf(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": key.Namespace, "name": key.Name, "generation": int64(w.IntN(3))}, "spec": spec,
	}})
}

func (w world) keySet() cluster.Object {
	out := &cluster.KeySet{Source: pick(w, authn.Source{URI: "http://k1"}, authn.Source{URI: "http://k2"}, authn.Source{Issuer: "http://i1"}), Fault: pick(w, "", "away")}
	if w.IntN(2) == 0 {
		out.Set, _, _ = jwks.Parse([]byte(pick(w, jwks.None, jwks.Empty)))
	}
	return out
}
