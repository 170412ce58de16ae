package app

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// kind is a kind that the fake API server knows.
type kind struct {
	group, version, plural, name string
	namespaced                   bool
}

var kinds = []kind{
	{"", "v1", "namespaces", "Namespace", false},
	{"", "v1", "nodes", "Node", false},
	{"", "v1", "pods", "Pod", true},
	{"", "v1", "services", "Service", true},
	{"", "v1", "serviceaccounts", "ServiceAccount", true},
	{"", "v1", "configmaps", "ConfigMap", true},
	{"", "v1", "secrets", "Secret", true},
	{"", "v1", "events", "Event", true},
	{"apps", "v1", "deployments", "Deployment", true},
	{"apps", "v1", "daemonsets", "DaemonSet", true},
	{"policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true},
	{"rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", false},
	{"rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", false},
	{"rbac.authorization.k8s.io", "v1", "roles", "Role", true},
	{"rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", true},
	{"coordination.k8s.io", "v1", "leases", "Lease", true},
	{"discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true},
	{"admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false},
	{"admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", false},
	{"apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", false},
	{"security.istio.io", "v1", "authorizationpolicies", "AuthorizationPolicy", true},
	{"security.istio.io", "v1", "requestauthentications", "RequestAuthentication", true},
	{"networking.istio.io", "v1", "serviceentries", "ServiceEntry", true},
	{"gateway.networking.k8s.io", "v1", "gateways", "Gateway", true},
	{"gateway.networking.k8s.io", "v1", "gatewayclasses", "GatewayClass", false},
	{"authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", false},
}

func (k kind) groupVersion() string {
	if k.group == "" {
		return k.version
	}
	return k.group + "/" + k.version
}

type object = map[string]any

// fakeAPI is an API server with the semantics that the command relies on: discovery, create, read, list by selectors,
// patches (apply and merge), delete. What controllers and kubelets would do is in fakecluster_test.go.
type fakeAPI struct {
	server *httptest.Server
	// bundle is the trust bundle that the control plane writes.
	bundle string

	mu       sync.Mutex // guards the fields below
	objects  map[string]map[string]object
	revision int
	// unknown are the plurals of kinds that the cluster does not know.
	unknown map[string]bool
	// denied are "verb resource" pairs that access reviews refuse.
	denied map[string]bool
	// reports are what the agent on a node answers at /release, in this order; the last one again and again.
	reports map[string][]string
	// dumps are what the node proxy on a node answers at /config_dump; levels are its log levels.
	dumps, levels map[string]string
}

func newFakeAPI(t testing.TB) *fakeAPI {
	f := &fakeAPI{objects: map[string]map[string]object{}, unknown: map[string]bool{}, denied: map[string]bool{}, reports: map[string][]string{},
		dumps: map[string]string{}, levels: map[string]string{}}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

// request is what a path asks for.
type request struct {
	kind            kind
	namespace, name string
	sub             string
}

func parse(path string) (request, bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var r request
	var group, version string
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		group, version, parts = parts[1], parts[2], parts[3:]
	default:
		return r, false
	}
	if parts[0] == "namespaces" && len(parts) >= 3 {
		r.namespace, parts = parts[1], parts[2:]
	}
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.group == group && k.version == version && k.plural == parts[0] })
	if i < 0 {
		return r, false
	}
	r.kind = kinds[i]
	if len(parts) > 1 {
		r.name = parts[1]
	}
	if len(parts) > 2 {
		r.sub = parts[2]
	}
	return r, true
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if f.discovery(w, req.URL.Path) {
		return
	}
	r, ok := parse(req.URL.Path)
	if !ok {
		fail(w, http.StatusNotFound, "NotFound", "no such path: "+req.URL.Path)
		return
	}
	if r.sub == "portforward" {
		f.portForward(w, req, r)
		return
	}
	body, err := readJSON(req)
	if err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.unknown[r.kind.plural]:
		fail(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
	case r.kind.plural == "selfsubjectaccessreviews":
		f.review(w, body)
	case req.Method == http.MethodGet && r.name == "":
		f.list(w, r, req.URL.Query().Get("labelSelector"), req.URL.Query().Get("fieldSelector"))
	case req.Method == http.MethodGet:
		f.get(w, r)
	case req.Method == http.MethodPost, req.Method == http.MethodPut:
		f.write(w, r, body, req.Method == http.MethodPost)
	case req.Method == http.MethodPatch:
		f.patch(w, r, body, req.Header.Get("Content-Type"), req.URL.Query().Get("fieldManager"))
	case req.Method == http.MethodDelete:
		f.delete(w, r)
	default:
		fail(w, http.StatusMethodNotAllowed, "MethodNotAllowed", req.Method)
	}
}

// readJSON reads a body, which typed clients send as protobuf.
func readJSON(req *http.Request) ([]byte, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil || req.Header.Get("Content-Type") != runtime.ContentTypeProtobuf || len(body) == 0 {
		return body, err
	}
	typed, _, err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	return json.Marshal(typed)
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, code int, reason, message string) {
	answer(w, code, object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message})
}

// discovery answers the paths by which clients learn what there is.
func (f *fakeAPI) discovery(w http.ResponseWriter, path string) bool {
	switch path {
	case "/version":
		answer(w, 200, object{"major": "1", "minor": "37", "gitVersion": "v1.37.2"})
		return true
	case "/api":
		answer(w, 200, object{"kind": "APIVersions", "versions": []string{"v1"}})
		return true
	case "/apis":
		var groups []object
		for _, k := range kinds {
			version := object{"groupVersion": k.groupVersion(), "version": k.version}
			known := slices.ContainsFunc(groups, func(g object) bool { return g["name"] == k.group })
			if k.group != "" && !known {
				groups = append(groups, object{"name": k.group, "versions": []any{version}, "preferredVersion": version})
			}
		}
		answer(w, 200, object{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
		return true
	}
	gv, ok := strings.CutPrefix(path, "/apis/")
	if !ok {
		gv, ok = strings.CutPrefix(path, "/api/")
	}
	var resources []object
	for _, k := range kinds {
		if ok && k.groupVersion() == gv {
			resources = append(resources, object{
				"name": k.plural, "kind": k.name, "namespaced": k.namespaced, "singularName": "",
				"verbs": []string{"create", "delete", "get", "list", "patch", "update", "watch"},
			})
		}
	}
	if resources == nil {
		return false
	}
	answer(w, 200, object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": resources})
	return true
}

func (f *fakeAPI) review(w http.ResponseWriter, body []byte) {
	var review struct {
		Spec struct {
			ResourceAttributes struct{ Verb, Resource string }
		}
	}
	if err := json.Unmarshal(body, &review); err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	a := review.Spec.ResourceAttributes
	answer(w, http.StatusCreated, object{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": object{}, "status": object{"allowed": !f.denied[a.Verb+" "+a.Resource]},
	})
}

func meta(o object) object {
	m, _ := o["metadata"].(object)
	if m == nil {
		m = object{}
		o["metadata"] = m
	}
	return m
}

func str(m object, key string) string { s, _ := m[key].(string); return s }

func stringMap(v any) map[string]string {
	out := map[string]string{}
	m, _ := v.(object)
	for k, v := range m {
		out[k], _ = v.(string)
	}
	return out
}

func (f *fakeAPI) list(w http.ResponseWriter, r request, labelSelector, fieldSelector string) {
	byLabel, err1 := labels.Parse(labelSelector)
	byField, err2 := fields.ParseSelector(fieldSelector)
	if err1 != nil || err2 != nil {
		fail(w, http.StatusBadRequest, "BadRequest", fmt.Sprint(err1, err2))
		return
	}
	items := []object{}
	for _, key := range slices.Sorted(maps.Keys(f.objects[r.kind.plural])) {
		o := f.objects[r.kind.plural][key]
		m := meta(o)
		known := fields.Set{"metadata.name": str(m, "name"), "metadata.namespace": str(m, "namespace")}
		if (r.namespace == "" || str(m, "namespace") == r.namespace) && byLabel.Matches(labels.Set(stringMap(m["labels"]))) && byField.Matches(known) {
			items = append(items, o)
		}
	}
	answer(w, 200, object{"apiVersion": r.kind.groupVersion(), "kind": r.kind.name + "List", "metadata": object{"resourceVersion": "1"}, "items": items})
}

func key(namespace, name string) string { return namespace + "/" + name }

func (f *fakeAPI) find(r request) object { return f.objects[r.kind.plural][key(r.namespace, r.name)] }

func (f *fakeAPI) get(w http.ResponseWriter, r request) {
	o := f.find(r)
	if o == nil {
		fail(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", r.kind.plural, r.name))
		return
	}
	answer(w, 200, o)
}

func (f *fakeAPI) write(w http.ResponseWriter, r request, body []byte, create bool) {
	var o object
	if err := json.Unmarshal(body, &o); err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	r.name = str(meta(o), "name")
	if create && f.find(r) != nil {
		fail(w, http.StatusConflict, "AlreadyExists", fmt.Sprintf("%s %q already exists", r.kind.plural, r.name))
		return
	}
	answer(w, http.StatusCreated, f.store(r.kind, r.namespace, o))
}

func (f *fakeAPI) patch(w http.ResponseWriter, r request, body []byte, contentType, manager string) {
	var change object
	if err := yaml.Unmarshal(body, &change); err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	current := f.find(r)
	apply := contentType == "application/apply-patch+yaml"
	if current == nil && !apply {
		fail(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", r.kind.plural, r.name))
		return
	}
	merged := merge(current, change)
	if r.kind.name == "CustomResourceDefinition" {
		dropSchemas(merged)
	}
	if apply {
		meta(merged)["managedFields"] = []any{object{"manager": manager, "operation": "Apply", "apiVersion": r.kind.groupVersion()}}
	}
	answer(w, 200, f.store(r.kind, r.namespace, merged))
}

// merge is a JSON merge patch, and near enough to what apply does to objects of one owner.
func merge(into, from object) object {
	out := maps.Clone(into)
	if out == nil {
		out = object{}
	}
	for k, v := range from {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case object:
			below, _ := out[k].(object)
			out[k] = merge(below, v)
		default:
			out[k] = v
		}
	}
	return out
}

// dropSchemas takes the schemas out of a definition that the command applied. They are megabytes, and what is decided by
// them is tested in package crd and by definitions that stories load.
func dropSchemas(definition object) {
	versions, _ := spec(definition)["versions"].([]any)
	for _, version := range versions {
		delete(version.(object), "schema")
	}
}

// store puts an object into place as the API server does, and lets the controllers look at it.
func (f *fakeAPI) store(k kind, namespace string, o object) object {
	o["apiVersion"], o["kind"] = k.groupVersion(), k.name
	m := meta(o)
	if k.namespaced {
		m["namespace"] = namespace
	}
	name := str(m, "name")
	before := f.objects[k.plural][key(namespace, name)]
	generation := 1.0
	if before != nil {
		generation, _ = meta(before)["generation"].(float64)
		if !reflect.DeepEqual(before["spec"], o["spec"]) {
			generation++
		}
	} else {
		m["uid"] = fmt.Sprintf("uid-%d", f.revision)
		m["creationTimestamp"] = metav1.Now().UTC().Format("2006-01-02T15:04:05Z")
	}
	m["generation"] = generation
	f.revision++
	m["resourceVersion"] = strconv.Itoa(f.revision)
	if f.objects[k.plural] == nil {
		f.objects[k.plural] = map[string]object{}
	}
	f.objects[k.plural][key(namespace, name)] = o
	f.reconcile(k, namespace, o)
	return o
}

func (f *fakeAPI) delete(w http.ResponseWriter, r request) {
	o := f.find(r)
	if o == nil {
		fail(w, http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", r.kind.plural, r.name))
		return
	}
	delete(f.objects[r.kind.plural], key(r.namespace, r.name))
	f.deleted(r.kind, r.namespace, o)
	answer(w, 200, object{"apiVersion": "v1", "kind": "Status", "status": "Success"})
}

func kindOf(plural string) kind {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.plural == plural })
	if i < 0 {
		panic("no such kind: " + plural)
	}
	return kinds[i]
}

// load stores the objects of a YAML text.
func (f *fakeAPI) load(text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for doc := range strings.SplitSeq("\n"+text, "\n---") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return err
		}
		if o == nil {
			continue
		}
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == o["kind"] })
		if i < 0 {
			return fmt.Errorf("no such kind: %v", o["kind"])
		}
		f.store(kinds[i], str(meta(o), "namespace"), o)
	}
	return nil
}
