"""The configuration server: database, certificates, registry of components, durable jobs, monitors and the ARM API.

Layers (arrows only downwards): ``app`` > ``portal | api`` > ``monitors | enrolment`` > ``workflows`` > ``jobs`` >
``registry`` > ``database``. The data path keeps replicating while this role is down.
"""
