package waypoint

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/console"
)

// key is the namespace and name of an object.
type key struct{ namespace, name string }

func (k key) String() string { return k.namespace + "/" + k.name }

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.namespace, o.namespace), cmp.Compare(k.name, o.name))
}

func nameOf(object metav1.Object) key { return key{object.GetNamespace(), object.GetName()} }

// trafficTypes are the values of --for.
var trafficTypes = []string{api.WaypointForService, api.WaypointForWorkload, api.WaypointForAll, api.WaypointForNone}

// checkTraffic tells whether a value of --for is known.
func checkTraffic(value string) error {
	if value == "" || slices.Contains(trafficTypes, value) {
		return nil
	}
	return console.Usagef("--for %s: use %s", value, strings.Join(trafficTypes, ", "))
}

// manifest is the Gateway of a waypoint. Empty strings leave out what they are for.
func manifest(namespace, name, traffic, revision string) *unstructured.Unstructured {
	metadata := map[string]any{"name": name}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	labels := map[string]any{}
	if traffic != "" {
		labels[api.LabelWaypointFor] = traffic
	}
	if revision != "" {
		labels[api.LabelRevision] = revision
	}
	if len(labels) > 0 {
		metadata["labels"] = labels
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gatewayv1.GroupVersion.String(),
		"kind":       "Gateway",
		"metadata":   metadata,
		"spec": map[string]any{
			"gatewayClassName": api.ClassWaypoint,
			"listeners":        []any{map[string]any{"name": "mesh", "port": int64(api.PortHBONE), "protocol": "HBONE"}},
		},
	}}
}

// trafficOf is the traffic that is sent to a waypoint.
func trafficOf(gateway *gatewayv1.Gateway) string {
	return cmp.Or(gateway.Labels[api.LabelWaypointFor], api.WaypointForService)
}

// revisionOf is the control plane that a waypoint is for.
func revisionOf(gateway *gatewayv1.Gateway) string {
	return cmp.Or(gateway.Labels[api.LabelRevision], api.RevisionDefault)
}

// programmed is the condition that says whether a waypoint works. One of an older state of the Gateway does not count.
func programmed(gateway *gatewayv1.Gateway) metav1.Condition {
	const kind = string(gatewayv1.GatewayConditionProgrammed)
	condition := meta.FindStatusCondition(gateway.Status.Conditions, kind)
	switch {
	case condition == nil, condition.Status == metav1.ConditionUnknown && condition.ObservedGeneration == 0: // as the definition has it
		return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: "Pending", Message: "the control plane has not looked at it yet"}
	case condition.ObservedGeneration < gateway.Generation:
		return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: "Pending", Message: "the control plane has not looked at the last change yet"}
	}
	return *condition
}

func isProgrammed(gateway *gatewayv1.Gateway) bool {
	return programmed(gateway).Status == metav1.ConditionTrue
}

// Waypoint is a waypoint as -o shows it; its names are stable.
type Waypoint struct {
	Namespace   string   `json:"namespace"`
	Name        string   `json:"name"`
	Class       string   `json:"class"`
	Revision    string   `json:"revision"`
	TrafficType string   `json:"trafficType"`
	Programmed  string   `json:"programmed"` // True, False or Unknown
	Reason      string   `json:"reason"`
	Message     string   `json:"message,omitempty"`
	Addresses   []string `json:"addresses,omitempty"`
	// Bound are the objects whose label names the waypoint, such as "namespace shop" and "service shop/front".
	Bound []string `json:"bound"`
	// Advice says what keeps traffic from going through it, and what to do.
	Advice []Advice `json:"advice"`
}

// describe puts together what is shown of a waypoint.
func describe(gateway *gatewayv1.Gateway, f *facts) Waypoint {
	condition := programmed(gateway)
	w := Waypoint{
		Namespace: gateway.Namespace, Name: gateway.Name, Class: string(gateway.Spec.GatewayClassName),
		Revision: revisionOf(gateway), TrafficType: trafficOf(gateway),
		Programmed: string(condition.Status), Reason: condition.Reason, Message: condition.Message,
		Bound: []string{}, Advice: f.advice(gateway),
	}
	for _, address := range gateway.Status.Addresses {
		w.Addresses = append(w.Addresses, address.Value)
	}
	for _, s := range f.of(nameOf(gateway)) {
		w.Bound = append(w.Bound, s.String())
	}
	return w
}
