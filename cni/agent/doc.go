// Package agent is the node's CNI agent: it captures the pods that want to be and releases those that do not, keeps each
// pod's status annotation true, and answers the plugin for pods that start. Informers, the plugin, node proxies and
// finished jobs post to one loop; the loop owns all state and starts jobs, at most one for a pod at a time; jobs touch the
// kernel and the API and own nothing. Whatever step the agent dies or fails in, the next one finds the rest to do by
// looking at the node.
package agent
